package driver

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/renewal"
)

// measured is a driver with the issuers default and other, which are not asked.
func measured(t testing.TB) (*Driver, *prometheus.Registry) {
	t.Helper()
	registry := prometheus.NewRegistry()
	d, err := New(Config{
		Name: "csi.step-ca.io", NodeName: "node-1", KubeletDir: "/var/lib/kubelet", Metrics: registry,
		Issuers: map[string]Issuer{"default": {}, "other": {}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return d, registry
}

// add tracks a volume that was issued now, for a day. Its renewals, if the line
// runs, do what renew does.
func (d *Driver) add(id, pod, target string) *volume {
	now := time.Now()
	return d.addWith(record{
		VolumeID: id, Target: target, Pod: issuer.Pod{Namespace: "shop", Name: pod}, Issued: now, NotAfter: now.Add(24 * time.Hour),
	}, nil)
}

func (d *Driver) addWith(r record, renew func(context.Context) error) *volume {
	v := &volume{record: r, attributes: attributes.Attributes{Issuer: "default"}}
	v.item = d.authorities["default"].line.Add(v.validity(), func(ctx context.Context) (renewal.Validity, error) {
		return v.validity(), renew(ctx)
	})
	d.volumes[r.VolumeID] = v
	return v
}

// scrape returns the series with the prefix, as Prometheus would read them.
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
			t.Errorf("%s: got %v (%v), not %v", series, is, there, value)
		}
	}
	for series := range got {
		if _, wanted := want[series]; !wanted {
			t.Errorf("%s is not wanted", series)
		}
	}
}

// The names and types follow the rules of Prometheus.
func TestMetricsAreWellNamed(t *testing.T) {
	d, registry := measured(t)
	d.add("csi-1", "web-0", "pods/uid/volumes/kubernetes.io~csi/tls/mount")
	d.metrics.refreshed("default", issuer.Roots{Own: []*x509.Certificate{{Raw: []byte("root")}}}, nil)
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
			t.Errorf("%s has not the prefix", family.GetName())
		}
	}
}

// A volume has its series for as long as it is tracked, and no longer.
func TestSeriesOfAVolume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, registry := measured(t)
		now := float64(time.Now().Unix())
		due := seconds(d.add("csi-1", "web-0", "pods/uid/volumes/kubernetes.io~csi/tls/mount").validity().Due())
		d.add("csi-2", "web-1", "some/where/else")
		const hour = 3600
		first, second := `{issuer="default",namespace="shop",pod="web-0",volume="tls"}`, `{issuer="default",namespace="shop",pod="web-1",volume="csi-2"}`
		expectSeries(t, scrape(t, registry, "step_csi_certificate_"), map[string]float64{
			"step_csi_certificate_expiration_timestamp_seconds" + first:  now + 24*hour,
			"step_csi_certificate_issued_timestamp_seconds" + first:      now,
			"step_csi_certificate_renewal_timestamp_seconds" + first:     due,
			"step_csi_certificate_renewal_failures" + first:              0,
			"step_csi_certificate_expiration_timestamp_seconds" + second: now + 24*hour,
			"step_csi_certificate_issued_timestamp_seconds" + second:     now,
			"step_csi_certificate_renewal_timestamp_seconds" + second:    due,
			"step_csi_certificate_renewal_failures" + second:             0,
		})
		delete(d.volumes, "csi-1")
		if left := scrape(t, registry, "step_csi_certificate_"); len(left) != 4 || left["step_csi_certificate_renewal_failures"+first] != 0 {
			t.Errorf("left: %v", left)
		}
		// Its keeper has found that it is not mounted any more.
		d.volumes["csi-2"].gone.Store(true)
		expectSeries(t, scrape(t, registry, "step_csi_certificate_"), nil)
	})
}

// Two volumes of the same labels are one series, the newer's: a scrape never
// fails for them.
func TestVolumesOfTheSameLabels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, registry := measured(t)
		for i := range 5 {
			d.add(fmt.Sprint("csi-", i), "web-0", fmt.Sprintf("pods/uid-%d/volumes/kubernetes.io~csi/tls/mount", i))
			time.Sleep(time.Hour)
		}
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
		d.add("good", "web-0", "a")
		due := record{Pod: issuer.Pod{Namespace: "shop", Name: "web-1"}, Issued: time.Now().Add(-20 * time.Hour), NotAfter: time.Now().Add(4 * time.Hour)}
		failing, hanging := due, due
		failing.VolumeID, hanging.VolumeID = "failing", "hanging"
		tries := 0
		d.addWith(failing, func(ctx context.Context) error {
			if tries++; tries > 3 {
				<-ctx.Done()
			}
			return errors.New("no route to host")
		})
		ctx, stop := context.WithCancel(t.Context())
		defer synctest.Wait()
		defer stop()
		go d.authorities["default"].line.Run(ctx)
		time.Sleep(time.Minute)
		// After the failures of the other, which it would be in the way of.
		d.addWith(hanging, func(ctx context.Context) error {
			<-ctx.Done()
			return ctx.Err()
		})
		synctest.Wait()
		// Of an issuer that is not configured any more.
		unfit := d.add("unfit", "web-3", "d")
		unfit.attributes, unfit.record.Attributes = attributes.Attributes{}, map[string]string{"issuer": "old"}
		expectSeries(t, scrape(t, registry, "step_csi_volumes"), map[string]float64{
			`step_csi_volumes{issuer="default"}`: 3, `step_csi_volumes_backoff{issuer="default"}`: 1, `step_csi_volumes_overdue{issuer="default"}`: 2,
			`step_csi_volumes{issuer="other"}`: 0, `step_csi_volumes_backoff{issuer="other"}`: 0, `step_csi_volumes_overdue{issuer="other"}`: 0,
			`step_csi_volumes{issuer="old"}`: 1, `step_csi_volumes_backoff{issuer="old"}`: 0, `step_csi_volumes_overdue{issuer="old"}`: 0,
		})
		const failures = `step_csi_certificate_renewal_failures{issuer="default",namespace="shop",pod="web-1",volume="failing"}`
		if got := scrape(t, registry, failures)[failures]; got != 3 {
			t.Errorf("%v failures", got)
		}
	})
}

func TestResultsOfSigning(t *testing.T) {
	for want, err := range map[string]error{
		resultSuccess:     nil,
		resultDenied:      fmt.Errorf("issuer default: %w: short names", issuer.Denied),
		resultUnavailable: fmt.Errorf("issuer default: %w: no route to host", issuer.Unavailable),
		resultInvalid:     fmt.Errorf("issuer default: %w: another key", issuer.InvalidAnswer),
		resultNoToken:     fmt.Errorf("issuer default: %w: %w", issuer.Unavailable, issuer.NoPodToken),
		resultCanceled:    fmt.Errorf("issuer default: %w: %w", issuer.Unavailable, context.Canceled),
		resultOther:       errors.New("no entropy"),
	} {
		t.Run(want, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d, registry := measured(t)
				begin := time.Now()
				time.Sleep(time.Second)
				d.metrics.signed("default", true, begin, &issuer.Credential{}, err)
				for _, r := range results {
					series := fmt.Sprintf(`step_csi_signings_total{issuer="default",operation="renew",result=%q}`, r)
					if got, there := scrape(t, registry, series)[series]; !there || (got == 1) != (r == want) {
						t.Errorf("%s: %v, %v", r, got, there)
					}
				}
				const took = `step_csi_signing_duration_seconds_sum{issuer="default",operation="renew"}`
				if got := scrape(t, registry, took)[took]; got != 1 {
					t.Errorf("it took %v s", got)
				}
				now, never := float64(time.Now().Unix()), 0.0
				answer := func(when, name, call string) string {
					return fmt.Sprintf("step_csi_issuer_last_%s_timestamp_seconds{issuer=%q,operation=%q}", when, name, call)
				}
				times := map[string]float64{}
				for _, name := range []string{"default", "other"} {
					for _, call := range []string{callSign, callRoots} {
						times[answer("answer", name, call)], times[answer("failure", name, call)] = never, never
					}
				}
				switch want {
				case resultSuccess:
					times[answer("answer", "default", callSign)] = now
				case resultUnavailable:
					times[answer("failure", "default", callSign)] = now
				}
				expectSeries(t, scrape(t, registry, "step_csi_issuer_last_"), times)
				d.metrics.refreshed("other", issuer.Roots{}, err)
				switch want {
				case resultSuccess:
					times[answer("answer", "other", callRoots)] = now
				case resultUnavailable:
					times[answer("failure", "other", callRoots)] = now
				}
				expectSeries(t, scrape(t, registry, "step_csi_issuer_last_"), times)
			})
		})
	}
	if got := result(fmt.Errorf("ask: %w", context.DeadlineExceeded)); got != resultUnavailable {
		t.Errorf("too slow: %s", got)
	}
}

func TestWaitingCalls(t *testing.T) {
	d, registry := measured(t)
	const series = `step_csi_signings_waiting{issuer="default"}`
	entered := d.metrics.wait("default")
	if got := scrape(t, registry, series)[series]; got != 1 {
		t.Errorf("%v wait", got)
	}
	entered()
	if got := scrape(t, registry, series)[series]; got != 0 {
		t.Errorf("%v wait", got)
	}
}

// A CA says how many roots it has, and may say the same one twice.
func TestRootsAreBounded(t *testing.T) {
	d, registry := measured(t)
	var roots []*x509.Certificate
	for i := range 100 {
		root := &x509.Certificate{Raw: []byte(fmt.Sprint("root ", i%50)), NotAfter: time.Unix(int64(1000+i%50/2), 0)}
		roots = append(roots, root)
	}
	d.metrics.refreshed("default", issuer.Roots{Own: roots}, nil)
	got := scrape(t, registry, "step_csi_root_expiration_timestamp_seconds")
	if len(got) != maxRoots {
		t.Errorf("%d series", len(got))
	}
	for series, at := range got {
		if at >= 1000+maxRoots/2 || !strings.Contains(series, `issuer="default"`) {
			t.Errorf("%s is there, and expires at %v", series, at)
		}
	}
	d.metrics.refreshed("default", issuer.Roots{Own: roots[:1]}, nil)
	if got := scrape(t, registry, "step_csi_root_expiration_timestamp_seconds"); len(got) != 1 {
		t.Errorf("of another answer: %v", got)
	}
}

func BenchmarkScrape(b *testing.B) {
	d, registry := measured(b)
	for i := range 110 {
		d.add(fmt.Sprint("csi-", i), fmt.Sprint("web-", i), fmt.Sprintf("pods/uid-%d/volumes/kubernetes.io~csi/tls/mount", i))
	}
	for b.Loop() {
		scrape(b, registry, "step_csi_certificate_")
	}
}
