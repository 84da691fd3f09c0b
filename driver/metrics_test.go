package driver

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/flexstack/step-csi/driver/volume"
	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/renewal"
	"github.com/flexstack/step-csi/issuer/schedule"
)

// signer is a Signer that the tests never call.
type signer struct{ issuer.Signer }

// measured returns a driver with the issuers default and other, and its metrics.
func measured(t testing.TB, perVolume bool) (*Driver, *prometheus.Registry) {
	t.Helper()
	i, err := issuer.New(issuer.Config{Signer: signer{}, Policy: func(context.Context, issuer.Pod, issuer.Request) error { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	registry := prometheus.NewRegistry()
	d, err := New(Config{
		Name: "csi.step-ca.io", NodeName: "node-1", KubeletDir: "/var/lib/kubelet", Metrics: registry, MetricsPerVolume: perVolume,
		Issuers: map[string]Issuer{"default": {Issuer: i}, "other": {Issuer: i}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return d, registry
}

// show makes the collector report these volumes.
func (d *Driver) show(volumes ...volumeSnapshot) {
	d.collector.volumes = slices.Values(volumes)
}

// mounted returns a volume of the issuer default, with a certificate issued now, for one
// day.
func mounted(pod, name string) volumeSnapshot {
	now := time.Now()
	v := renewal.Validity{Issued: now, NotAfter: now.Add(24 * time.Hour)}
	return volumeSnapshot{
		Volume: &volume.Volume{Spec: volume.Spec{
			Target: "pods/uid/volumes/kubernetes.io~csi/" + name + "/mount",
			Pod:    issuer.Pod{Namespace: "shop", Name: pod},
		}},
		issuer: "default",
		state:  schedule.State{Validity: v, Next: v.Due()},
	}
}

// scrape returns the series with the prefix, as Prometheus reads them.
func scrape(t testing.TB, registry *prometheus.Registry, prefix string) map[string]float64 {
	t.Helper()
	answer := httptest.NewRecorder()
	promhttp.HandlerFor(registry, promhttp.HandlerOpts{}).ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if answer.Code != http.StatusOK {
		t.Fatalf("%d: %s", answer.Code, answer.Body)
	}
	all := map[string]float64{}
	for line := range strings.Lines(answer.Body.String()) {
		if !strings.HasPrefix(line, prefix) {
			continue
		}
		i := strings.LastIndexByte(line, ' ')
		value, err := strconv.ParseFloat(strings.TrimSpace(line[i:]), 64)
		if err != nil {
			t.Fatal(err)
		}
		all[line[:i]] = value
	}
	return all
}

func expectSeries(t *testing.T, got, want map[string]float64) {
	t.Helper()
	for series, value := range want {
		if is, there := got[series]; !there || is != value {
			t.Errorf("%s: got %v (present: %v), want %v", series, is, there, value)
		}
	}
	for series := range got {
		if _, wanted := want[series]; !wanted {
			t.Errorf("unexpected series %s", series)
		}
	}
}

// The names and types follow the conventions of Prometheus.
func TestMetricsAreWellNamed(t *testing.T) {
	d, registry := measured(t, true)
	d.show(mounted("web-0", "tls"))
	problems, err := testutil.GatherAndLint(registry)
	if err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if !strings.HasPrefix(family.GetName(), "step_csi_") {
			t.Errorf("%s lacks the prefix", family.GetName())
		}
	}
}

// By default, no metric names a pod or a volume, and the number of series does not depend
// on the number of volumes.
func TestMetricsNameNoPods(t *testing.T) {
	d, registry := measured(t, false)
	var all []volumeSnapshot
	for i := range 1000 {
		all = append(all, mounted(fmt.Sprint("secret-pod-", i), "secret-volume"))
	}
	d.show(all[0])
	one := scrape(t, registry, "step_csi_")
	d.show(all...)
	thousand := scrape(t, registry, "step_csi_")
	if len(one) != len(thousand) {
		t.Errorf("%d series for 1 volume, %d for 1,000", len(one), len(thousand))
	}
	for series := range thousand {
		if strings.Contains(series, "secret") || strings.Contains(series, "pod=") {
			t.Errorf("%s names a pod or a volume", series)
		}
	}
}

// Where it is configured, a volume has its series while it is registered.
func TestSeriesOfAVolume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, registry := measured(t, true)
		now := float64(time.Now().Unix())
		v := mounted("web-0", "tls")
		v.state.Failures, v.state.Next = 3, time.Now().Add(time.Minute)
		d.show(v)
		const hour, labels = 3600, `{issuer="default",namespace="shop",pod="web-0",volume="tls"}`
		expectSeries(t, scrape(t, registry, "step_csi_certificate_"), map[string]float64{
			"step_csi_certificate_expiration_timestamp_seconds" + labels: now + 24*hour,
			"step_csi_certificate_issued_timestamp_seconds" + labels:     now,
			"step_csi_certificate_renewal_timestamp_seconds" + labels:    now + 60,
			"step_csi_certificate_renewal_failures" + labels:             3,
		})
		d.show()
		expectSeries(t, scrape(t, registry, "step_csi_certificate_"), nil)
	})
}

// Two volumes with the same labels are one series, that of the newer volume, so that
// the scrape does not fail.
func TestVolumesOfTheSameLabels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, registry := measured(t, true)
		var all []volumeSnapshot
		for range 5 {
			all = append(all, mounted("web-0", "tls"))
			time.Sleep(time.Hour)
		}
		d.show(all...)
		const newest = `step_csi_certificate_issued_timestamp_seconds{issuer="default",namespace="shop",pod="web-0",volume="tls"}`
		expectSeries(t, scrape(t, registry, "step_csi_certificate_issued"), map[string]float64{newest: float64(time.Now().Add(-time.Hour).Unix())})
		const count = `step_csi_volumes{issuer="default",namespace="shop"}`
		if all := scrape(t, registry, "step_csi_volumes{")[count]; all != 5 {
			t.Errorf("%v volumes", all)
		}
	})
}

// The volumes of a namespace and issuer are counted together, and their series end with
// the last of them.
func TestMetricsOfNamespaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, registry := measured(t, false)
		now := time.Now()
		good, failing, hanging, unfit := mounted("web-0", "a"), mounted("web-1", "b"), mounted("web-2", "c"), mounted("web-3", "d")
		failing.state.Failures = 3
		hanging.state.Validity.Issued, hanging.state.Validity.NotAfter = now.Add(-20*time.Hour), now.Add(4*time.Hour)
		hanging.state.Next = hanging.state.Validity.Due()
		unfit.issuer, unfit.unmanaged = "removed", errors.New("it is not an issuer in the configuration")
		bank := mounted("web-0", "e")
		bank.Pod.Namespace, bank.issuer = "bank", "other"
		d.collector.unread = func() int { return 2 }
		d.show(good, failing, hanging, unfit, bank)
		want := map[string]float64{}
		hours := func(n int) float64 { return float64(now.Add(time.Duration(n) * time.Hour).Unix()) }
		for labels, values := range map[[2]string][7]float64{
			{"shop", "default"}: {3, 1, 2, 1, 0, hours(4), hours(-20)},
			{"shop", "removed"}: {1, 1, 1, 0, 1, hours(24), hours(0)},
			{"bank", "other"}:   {1, 0, 0, 0, 0, hours(24), hours(0)},
			{"", ""}:            {0, 2, 2, 0, 2, 0, 0},
		} {
			for i, name := range []string{"", "_backoff", "_overdue", "_expiring", "_unmanaged", "_earliest_expiration_timestamp_seconds", "_earliest_issued_timestamp_seconds"} {
				want[fmt.Sprintf("step_csi_volumes%s{issuer=%q,namespace=%q}", name, labels[1], labels[0])] = values[i]
			}
		}
		expectSeries(t, scrape(t, registry, "step_csi_volumes"), want)
		d.collector.unread = func() int { return 0 }
		d.show()
		expectSeries(t, scrape(t, registry, "step_csi_volumes"), nil)
	})
}

// One volume that expires shows among thousands that do not.
func TestOneExpiringVolumeAmongThousands(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, registry := measured(t, false)
		all := []volumeSnapshot{mounted("web-0", "tls")}
		all[0].state.Failures = 1
		time.Sleep(23 * time.Hour)
		for i := range 5000 {
			v := mounted(fmt.Sprint("good-", i), "tls")
			v.state.Validity.NotAfter = time.Now().Add(time.Hour) // earlier than web-0's, at the end
			if i%2 == 0 {
				v.state.Validity.NotAfter = time.Now().Add(24 * time.Hour)
			}
			all = append(all, v)
		}
		d.show(all...)
		for _, name := range []string{"backoff", "overdue", "expiring"} {
			series := "step_csi_volumes_" + name + `{issuer="default",namespace="shop"}`
			if got := scrape(t, registry, series)[series]; got != 1 {
				t.Errorf("%s: %v", series, got)
			}
		}
	})
}

// When a certificate of a day counts as expiring.
func TestExpiring(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issued := time.Now()
		for name, c := range map[string]struct {
			after    time.Duration // since it was issued
			next     time.Duration // from then on
			failures int
			want     bool
		}{
			"new":                         {time.Hour, 15 * time.Hour, 0, false},
			"fails, with time left":       {19 * time.Hour, time.Minute, 5, false},
			"fails":                       {20 * time.Hour, time.Minute, 5, true},
			"a late renewal, not yet due": {23 * time.Hour, 30 * time.Minute, 0, false},
			"due and in turn":             {23 * time.Hour, -time.Minute, 0, false},
			"overdue":                     {23 * time.Hour, -overdueAfter, 0, true},
			"expired":                     {25 * time.Hour, time.Minute, 9, true},
			"expired, and in turn":        {25 * time.Hour, -time.Minute, 0, false},
		} {
			now := issued.Add(c.after)
			s := schedule.State{Validity: renewal.Validity{Issued: issued, NotAfter: issued.Add(24 * time.Hour)}, Next: now.Add(c.next), Failures: c.failures}
			if got := (volumeSnapshot{state: s}).expiring(now); got != c.want {
				t.Errorf("%s: %v", name, got)
			}
		}
		// A volume that is not renewed has no time for its next renewal.
		unfit := volumeSnapshot{state: schedule.State{Validity: renewal.Validity{Issued: issued, NotAfter: issued.Add(24 * time.Hour)}}}
		if unfit.expiring(issued.Add(19*time.Hour)) || !unfit.expiring(issued.Add(20*time.Hour)) {
			t.Error("a volume that does not fit the configuration")
		}
		// Its renewal is not due yet, and will never succeed.
		unfit.state.Next, unfit.unmanaged = issued.Add(23*time.Hour), errors.New("no such issuer")
		if unfit.expiring(issued.Add(19*time.Hour)) || !unfit.expiring(issued.Add(20*time.Hour)) {
			t.Error("a volume that is not renewed, before its renewal is due")
		}
		// A certificate that the CA limits is renewed again and again, and never has less than a
		// fifth of what was left when it was issued.
		limited := volumeSnapshot{state: schedule.State{Failures: 1, Validity: renewal.Validity{
			Issued: issued.Add(22 * time.Hour), NotAfter: issued.Add(24 * time.Hour), LimitedBy: "the root", LeafNotAfter: issued.Add(46 * time.Hour),
		}}}
		if !limited.expiring(issued.Add(22 * time.Hour)) {
			t.Error("a certificate that the CA limits, and whose renewal gains nothing")
		}
		limited.state.Validity.NotAfter = issued.Add(27 * time.Hour)
		if limited.expiring(issued.Add(22 * time.Hour)) {
			t.Error("a certificate that the CA limits, with time left")
		}
		if !(volumeSnapshot{state: schedule.State{Failures: 1}}).expiring(issued) {
			t.Error("a certificate of which nothing is known, and whose renewal fails")
		}
	})
}

// Pods choose the attribute "issuer", and who can write to the record of a volume chooses
// more. They cannot make long series, or a series for each volume. A few issuers that were
// removed from the configuration keep their names.
func TestLabelsAreBounded(t *testing.T) {
	d, registry := measured(t, true)
	issuerLabel := d.issuerLabels()
	var all []volumeSnapshot
	for i := range 1000 {
		v := mounted(strings.Repeat("x", 10_000), fmt.Sprint(i))
		v.Pod.Namespace = strings.Repeat("y", 10_000) + fmt.Sprint(i)
		v.Target = strings.Repeat("z", 10_000)
		v.Attributes = map[string]string{"issuer": fmt.Sprint("unknown-", i)}
		v.issuer = issuerLabel(v.Volume)
		all = append(all, v)
	}
	d.show(all...)
	series := scrape(t, registry, "step_csi_")
	if got := series[`step_csi_volumes{issuer="",namespace=""}`]; got != 1000-mostRemoved {
		t.Errorf("%v volumes without a known issuer", got)
	}
	if got := series[`step_csi_volumes{issuer="unknown-0",namespace=""}`]; got != 1 {
		t.Errorf("%v volumes of an issuer that was removed", got)
	}
	if len(series) > 250 {
		t.Errorf("%d series", len(series))
	}
	for name := range series {
		if len(name) > 300 {
			t.Errorf("a long series: %.400s", name)
		}
	}
}

func TestResultsOfSigning(t *testing.T) {
	for _, want := range issuer.Outcomes() {
		if want == issuer.Unsupported {
			continue
		}
		t.Run(want.Label(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d, registry := measured(t, false)
				began := time.Now()
				time.Sleep(time.Second)
				d.metrics.signed("default", schedule.Renewal, began, want)
				for _, o := range issuer.Outcomes() {
					series := fmt.Sprintf(`step_csi_signings_total{issuer="default",operation="renew",result=%q}`, o.Label())
					if got, there := scrape(t, registry, series)[series]; there != (o != issuer.Unsupported) || (got == 1) != (o == want) {
						t.Errorf("%s: value %v, present %v", o, got, there)
					}
				}
				const took = `step_csi_signing_duration_seconds_sum{issuer="default",operation="renew"}`
				if got := scrape(t, registry, took)[took]; got != 1 {
					t.Errorf("the duration is %v s, want 1 s", got)
				}
				now := float64(time.Now().Unix())
				answer := func(when, name, call string) string {
					return fmt.Sprintf("step_csi_issuer_last_%s_timestamp_seconds{issuer=%q,operation=%q}", when, name, call)
				}
				times := map[string]float64{}
				for _, name := range []string{"default", "other"} {
					for _, call := range []string{callSign, callRoots} {
						times[answer("answer", name, call)], times[answer("failure", name, call)] = 0, 0
					}
				}
				d.metrics.called("other", callRoots, want)
				switch want {
				case issuer.OK:
					times[answer("answer", "default", callSign)], times[answer("answer", "other", callRoots)] = now, now
				case issuer.Unavailable, issuer.CallerRejected:
					times[answer("failure", "default", callSign)], times[answer("failure", "other", callRoots)] = now, now
				}
				expectSeries(t, scrape(t, registry, "step_csi_issuer_last_"), times)
			})
		})
	}
}

// The manual explains every result, and no other.
func TestResultsAreDocumented(t *testing.T) {
	manual, err := os.ReadFile("../docs/monitoring.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(manual), "| result | meaning |")
	table, _, _ = strings.Cut(table, "\n\n")
	rows := strings.Count(table, "\n") - 1 // without the line below the headings
	want := len(issuer.Outcomes()) - 1     // without Unsupported
	for _, o := range issuer.Outcomes() {
		if o != issuer.Unsupported && !strings.Contains(table, "\n| `"+o.Label()+"` |") {
			t.Errorf("%s is missing", o.Label())
		}
	}
	if rows != want {
		t.Errorf("%d rows, not %d", rows, want)
	}
}

func TestNameInPod(t *testing.T) {
	for target, want := range map[string]string{
		"pods/uid/volumes/kubernetes.io~csi/tls/mount": "tls",
		"some/where/else": "",
		"mount":           "",
	} {
		if got := nameInPod(target); got != want {
			t.Errorf("%s: %q", target, got)
		}
	}
}

// The number of roots is up to the CA, which may also send the same root twice. Roots that
// have expired do not hide one that expires soon.
func TestRootsAreBounded(t *testing.T) {
	var roots []*x509.Certificate
	for i := range 100 {
		roots = append(roots, &x509.Certificate{Raw: []byte(fmt.Sprint("root ", i%50)), NotAfter: time.Unix(int64(1000+i%50), 0)})
	}
	expiries := func(now int64, roots ...*x509.Certificate) (all []int64) {
		for _, root := range nextToExpire(roots, time.Unix(now, 0)) {
			all = append(all, root.NotAfter.Unix())
		}
		return all
	}
	for now, want := range map[int64][]int64{
		0:    {1000, 1001, 1002, 1003, 1004, 1005, 1006, 1007},
		1025: {1025, 1026, 1027, 1028, 1029, 1030, 1031, 1032},
		1047: {1047, 1048, 1049, 1046, 1045, 1044, 1043, 1042},
		2000: {1049, 1048, 1047, 1046, 1045, 1044, 1043, 1042},
	} {
		if got := expiries(now, roots...); !slices.Equal(got, want) {
			t.Errorf("at %d: %d, want %d", now, got, want)
		}
	}
	if got := expiries(0, roots[0]); len(got) != 1 {
		t.Errorf("%d roots from a list with one root", len(got))
	}
}

// One scrape of a node with 1,000 volumes in 100 namespaces.
func BenchmarkScrape(b *testing.B) {
	for name, perVolume := range map[string]bool{"aggregated": false, "per volume": true} {
		b.Run(name, func(b *testing.B) {
			d, registry := measured(b, perVolume)
			for i := range 1000 {
				v := mounted(fmt.Sprint("web-", i), "tls")
				v.VolumeID, v.Pod.Namespace = fmt.Sprint(i), fmt.Sprint("namespace-", i%100)
				d.volumes.put(v.Volume)
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := registry.Gather(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
