package driver

import (
	"context"
	"crypto/x509"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/renewal"
	"github.com/flexstack/step-csi/issuer/schedule"
)

// signer is a Signer that the tests never call.
type signer struct{ issuer.Signer }

// measured returns a driver with the issuers default and other, and its metrics.
func measured(t testing.TB) (*Driver, *prometheus.Registry) {
	t.Helper()
	i, err := issuer.New(issuer.Config{Signer: signer{}, Policy: func(context.Context, issuer.Pod, issuer.Request) error { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	registry := prometheus.NewRegistry()
	d, err := New(Config{
		Name: "csi.step-ca.io", NodeName: "node-1", KubeletDir: "/var/lib/kubelet", Metrics: registry,
		Issuers: map[string]Issuer{"default": {Issuer: i}, "other": {Issuer: i}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return d, registry
}

// show makes the collector report these volumes.
func (d *Driver) show(volumes ...volumeSnapshot) {
	d.collector.volumes = func() []volumeSnapshot { return volumes }
}

// mounted returns a volume with a certificate issued now, for one day.
func mounted(pod, volume string) volumeSnapshot {
	now := time.Now()
	v := renewal.Validity{Issued: now, NotAfter: now.Add(24 * time.Hour)}
	return volumeSnapshot{
		labels: volumeLabels{namespace: "shop", pod: pod, volume: volume, issuer: "default"},
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
	d, registry := measured(t)
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

// A volume has its series only while it is registered.
func TestSeriesOfAVolume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, registry := measured(t)
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
		d, registry := measured(t)
		var all []volumeSnapshot
		for range 5 {
			all = append(all, mounted("web-0", "tls"))
			time.Sleep(time.Hour)
		}
		d.show(all...)
		const newest = `step_csi_certificate_issued_timestamp_seconds{issuer="default",namespace="shop",pod="web-0",volume="tls"}`
		expectSeries(t, scrape(t, registry, "step_csi_certificate_issued"), map[string]float64{newest: float64(time.Now().Add(-time.Hour).Unix())})
		if all := scrape(t, registry, "step_csi_volumes{")[`step_csi_volumes{issuer="default"}`]; all != 5 {
			t.Errorf("%v volumes", all)
		}
	})
}

func TestCountsOfVolumes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, registry := measured(t)
		good, failing, hanging, unfit := mounted("web-0", "a"), mounted("web-1", "b"), mounted("web-2", "c"), mounted("web-3", "d")
		failing.state.Failures = 3
		hanging.state.Validity.Issued, hanging.state.Validity.NotAfter = time.Now().Add(-20*time.Hour), time.Now().Add(4*time.Hour)
		unfit.labels.issuer, unfit.unmanaged = "old", true // no longer configured
		d.show(good, failing, hanging, unfit)
		want := map[string]float64{}
		for issuer, counts := range map[string][4]float64{"default": {3, 1, 2, 0}, "other": {}, "old": {1, 0, 0, 1}} {
			for i, name := range []string{"volumes", "volumes_backoff", "volumes_overdue", "volumes_unmanaged"} {
				want[fmt.Sprintf("step_csi_%s{issuer=%q}", name, issuer)] = counts[i]
			}
		}
		expectSeries(t, scrape(t, registry, "step_csi_volumes"), want)
	})
}

func TestResultsOfSigning(t *testing.T) {
	for _, want := range issuer.Outcomes() {
		if want == issuer.Unsupported {
			continue
		}
		t.Run(want.Label(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d, registry := measured(t)
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

// The number of roots is up to the CA, which may also send the same root twice.
func TestRootsAreBounded(t *testing.T) {
	var roots []*x509.Certificate
	for i := range 100 {
		roots = append(roots, &x509.Certificate{Raw: []byte(fmt.Sprint("root ", i%50)), NotAfter: time.Unix(int64(1000+i%50/2), 0)})
	}
	first := firstToExpire(roots)
	if len(first) != mostRoots {
		t.Errorf("%d roots", len(first))
	}
	for _, root := range first {
		if root.NotAfter.Unix() >= 1000+mostRoots/2 {
			t.Errorf("a root that expires later was selected: %v", root.NotAfter)
		}
	}
	if got := firstToExpire(roots[:1]); len(got) != 1 {
		t.Errorf("%d roots from a list with one root", len(got))
	}
}

func BenchmarkScrape(b *testing.B) {
	d, registry := measured(b)
	var all []volumeSnapshot
	for i := range 110 {
		all = append(all, mounted(fmt.Sprint("web-", i), "tls"))
	}
	d.show(all...)
	for b.Loop() {
		scrape(b, registry, "step_csi_certificate_")
	}
}
