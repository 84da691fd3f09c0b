package driver

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// A kubelet that does not register the driver within 30 s is an error, which says what to
// check, and which is repeated rarely. It ends with the registration, and the time begins
// again when the registration socket was made again.
func TestMissingRegistration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, log := logging(t)
		r := newRegistrar(Config{Name: "csi.example", KubeletDir: "/var/lib/other", Socket: "/var/lib/other/plugins/csi.example/csi.sock"},
			registrationSocket("/var/lib/other", "csi.example"))
		go r.report(ctx)
		answer := func(status *registration.RegistrationStatus) {
			t.Helper()
			if _, err := r.NotifyRegistrationStatus(ctx, status); err != nil {
				t.Fatal(err)
			}
		}
		reported := func() int {
			synctest.Wait()
			return strings.Count(log.String(), `"The kubelet has not registered the driver"`)
		}
		time.Sleep(29 * time.Second)
		if err := r.err(); err == nil || !strings.Contains(err.Error(), "waiting for the kubelet") || reported() != 0 {
			t.Errorf("before the limit: %v, %d reports", err, reported())
		}
		time.Sleep(4 * time.Second)
		for _, want := range []string{"has not registered the driver csi.example within 30s", "/var/lib/other/plugins_registry/csi.example-reg.sock", "kubeletDir of the chart (--kubelet-dir), /var/lib/other,", "--root-dir"} {
			if err := r.err(); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(log.String(), want) {
				t.Errorf("no %q in %v, or in the log\n%s", want, err, log)
			}
		}
		time.Sleep(time.Hour)
		if got := reported(); got < 6 || got > 8 {
			t.Errorf("%d reports within an hour", got)
		}

		answer(&registration.RegistrationStatus{PluginRegistered: true})
		time.Sleep(time.Hour) // also while the kubelet restarts
		if err := r.err(); err != nil {
			t.Errorf("registered: %v", err)
		}
		before := reported()
		answer(&registration.RegistrationStatus{Error: "the name\nis taken" + strings.Repeat("x", 10_000)})
		if err := r.err(); err == nil || !strings.Contains(err.Error(), "refused to register the driver csi.example, and retries: the name is taken") || len(err.Error()) > 2000 {
			t.Errorf("refused: %.3000v", err)
		}
		time.Sleep(4 * time.Second)
		if reported() != before+1 {
			t.Error("a refusal is not reported")
		}
		answer(&registration.RegistrationStatus{PluginRegistered: true})

		r.serve()
		if err := r.err(); err == nil || !strings.Contains(err.Error(), "waiting for the kubelet") {
			t.Errorf("the socket was made again: %v", err)
		}
		time.Sleep(33 * time.Second)
		if reported() != before+2 {
			t.Error("not reported after the socket was made again")
		}
	})
}
