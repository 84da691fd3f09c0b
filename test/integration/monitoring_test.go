package integration

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flexstack/step-csi/test/logs"
	"github.com/flexstack/step-csi/test/node"
)

// server is a Prometheus with the chart's alerts.
type server struct {
	t       *testing.T
	address string
	logs    *node.Log
}

// startPrometheus starts a Prometheus that scrapes the targets, a map from job to
// address, every second. It uses the chart's alerts, but with "for" set to two
// seconds. The expressions are unchanged: they depend on the certificate's lifetime
// or on current failures.
func startPrometheus(t *testing.T, targets map[string]string) *server {
	t.Helper()
	program, err := exec.LookPath("prometheus")
	if err != nil {
		t.Fatal("prometheus is needed: apt-get install --no-install-recommends prometheus (its service is not): ", err)
	}
	directory := t.TempDir()
	shipped, err := filepath.Glob("../../deploy/charts/step-csi/alerts/*.yaml")
	node.Must(t, err)
	if len(shipped) != 2 {
		t.Fatalf("files with alerts: %s", shipped)
	}
	for _, file := range shipped {
		rules, err := os.ReadFile(file)
		node.Must(t, err)
		rules = regexp.MustCompile(`(?m)^( +for:) \S+$`).ReplaceAll(rules, []byte("$1 2s"))
		node.Must(t, os.WriteFile(filepath.Join(directory, filepath.Base(file)), rules, 0o600))
	}
	config := "global: {scrape_interval: 1s, evaluation_interval: 1s}\nrule_files: [plugin.yaml, authority.yaml]\nscrape_configs:\n"
	for job, address := range targets {
		config += fmt.Sprintf("  - {job_name: %s, honor_labels: true, static_configs: [{targets: [%q], labels: {node: node-1}}]}\n", job, address)
	}
	node.Must(t, os.WriteFile(filepath.Join(directory, "prometheus.yaml"), []byte(config), 0o600))
	s := &server{t: t, address: "127.0.0.1:" + freePort(t), logs: &node.Log{}}
	process := exec.Command(program, "--config.file", filepath.Join(directory, "prometheus.yaml"), "--storage.tsdb.path", filepath.Join(directory, "data"),
		"--web.listen-address", s.address, "--log.level", "warn")
	process.Stdout, process.Stderr = s.logs, s.logs
	node.Must(t, process.Start())
	t.Cleanup(func() {
		_ = process.Process.Signal(syscall.SIGTERM)
		if err := process.Wait(); err != nil {
			t.Errorf("prometheus: %v", err)
		}
		if t.Failed() {
			t.Logf("the log of Prometheus:\n%s", s.logs)
		}
	})
	node.Eventually(t, 60*time.Second, "Prometheus is ready", func() bool {
		answer, err := http.Get("http://" + s.address + "/-/ready")
		if err != nil {
			return false
		}
		answer.Body.Close()
		return answer.StatusCode == http.StatusOK
	})
	return s
}

// series is one series in an answer of Prometheus, with its value.
type series struct {
	Metric map[string]string
	Value  [2]any
}

func (s *server) query(expression string) []series {
	s.t.Helper()
	_, body := get(s.t, "http://"+s.address+"/api/v1/query?query="+url.QueryEscape(expression))
	var answer struct {
		Status string
		Data   struct{ Result []series }
	}
	node.Must(s.t, json.Unmarshal([]byte(body), &answer))
	if answer.Status != "success" {
		s.t.Fatalf("%s: %s", expression, body)
	}
	return answer.Data.Result
}

// firing returns the names of the firing alerts, except the alert about the root:
// the tests' CA has a root for one day.
func (s *server) firing() (names []string) {
	s.t.Helper()
	for _, alert := range s.query(`ALERTS{alertstate="firing",alertname!="StepCSIRootExpiring"}`) {
		names = append(names, alert.Metric["alertname"])
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// waitFiring waits until exactly these alerts fire.
func (s *server) waitFiring(within time.Duration, want ...string) {
	s.t.Helper()
	begin := time.Now()
	node.Eventually(s.t, within, fmt.Sprintf("firing: %q", want), func() bool { return slices.Equal(s.firing(), want) })
	s.t.Logf("after %s: %q", time.Since(begin).Round(time.Millisecond), want)
}

// The alerts fire during a real outage of the CA, the registration authority and the
// plugin, and resolve afterwards.
func TestAlertsThroughAnOutage(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	node.Must(t, ca.DisableRenewal(true))
	r := startAuthority(t, ca, 1, "")
	n := r.prepareNode()
	address := "127.0.0.1:" + freePort(t)
	n.Flags = []string{"--http-address", address}
	n.RefreshRoots(time.Second) // the default interval is minutes
	n.Start()
	prometheus := startPrometheus(t, map[string]string{"step-csi": address, "step-csi-ra": r.replicas[0].http})
	long, short := node.Pod{Name: "long-0"}, node.Pod{Name: "short-0", Attributes: map[string]string{"duration": "12s"}}
	for _, p := range []node.Pod{long, short} {
		r.admit(p)
		n.Publish(p)
	}
	prometheus.expectVolumes(n, address, long, short)
	prometheus.waitFiring(30 * time.Second)
	node.Eventually(t, time.Minute, "an alert about the root", func() bool {
		return len(prometheus.query(`ALERTS{alertname="StepCSIRootExpiring",issuer="default",fingerprint="`+ca.Fingerprint()+`"}`)) == 1
	})

	ca.Stop()
	prometheus.waitFiring(90*time.Second, "StepCSICAUnreachable", "StepCSICertificateExpiring", "StepCSIRenewalFailing")
	for _, name := range []string{"StepCSICertificateExpiring", "StepCSIRenewalFailing"} {
		for _, alert := range prometheus.query(`ALERTS{alertname="` + name + `"}`) {
			if m := alert.Metric; m["namespace"] != "shop" || m["issuer"] != "default" || m["node"] != "node-1" {
				t.Errorf("the alert is about other certificates: %v", m)
			}
		}
	}
	node.Must(t, ca.Resume())
	prometheus.waitFiring(90 * time.Second)

	r.stop(0)
	prometheus.waitFiring(90*time.Second, "StepCSIAuthorityDown", "StepCSICAUnreachable", "StepCSICertificateExpiring", "StepCSIRenewalFailing")
	r.start(0)
	prometheus.waitFiring(90 * time.Second)

	n.Unpublish(short) // its certificate would expire while the plugin is down
	prometheus.expectVolumes(n, address, long)
	n.Stop()
	prometheus.waitFiring(60*time.Second, "StepCSIPluginDown")
	n.Start()
	prometheus.waitFiring(60 * time.Second)
	prometheus.expectVolumes(n, address, long) // the restarted plugin reports the volume

	refused := node.Pod{Name: "refused-0", Attributes: map[string]string{"dns-names": "web.other"}}
	r.admit(refused)
	refuse := func() {
		if err := n.TryPublish(refused); status.Code(err) != codes.PermissionDenied {
			t.Errorf("the authority did not deny the request: %v", err)
		}
	}
	refuse()
	node.Eventually(t, time.Minute, "Prometheus has scraped the first denial", func() bool { return len(prometheus.query(`step_csi_ra_requests_total{code="PermissionDenied"}`)) == 1 })
	for range 15 {
		refuse()
	}
	prometheus.waitFiring(60*time.Second, "StepCSIAuthorityRefusing")
	n.Unpublish(long)
	prometheus.expectVolumes(n, address)
}

// The alerts name a namespace and a node. The log names the pod whose certificate is
// expiring, and no other.
func TestExpiringCertificateIsLogged(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	n := newNode(t, ca)
	long, short := node.Pod{Name: "long-0"}, node.Pod{Name: "short-0", Attributes: map[string]string{"duration": "12s"}}
	n.Publish(long)
	n.Publish(short)
	ca.Stop()
	node.Eventually(t, 3*time.Minute, "the log names the pod", func() bool { return n.Logs.Has(logs.Expiring) })
	for line := range strings.Lines(n.Logs.String()) {
		if strings.Contains(line, logs.Expiring) && (!strings.Contains(line, `pod="shop/short-0"`) || !strings.Contains(line, ` notAfter="`)) {
			t.Errorf("the log has %s", line)
		}
	}
	n.Unpublish(long)
	n.Unpublish(short)
}

// expectVolumes waits until Prometheus counts exactly the volumes of these pods, and has
// the expiry of the certificate that expires first.
func (s *server) expectVolumes(n *node.Node, address string, pods ...node.Pod) {
	s.t.Helper()
	labels := fmt.Sprintf(`{namespace="shop",issuer="default",node="node-1",job="step-csi",instance=%q}`, address)
	node.Eventually(s.t, 60*time.Second, fmt.Sprintf("the series of %d volumes", len(pods)), func() bool {
		count, first := s.query("step_csi_volumes"), s.query("step_csi_volumes_earliest_expiration_timestamp_seconds"+labels)
		if len(pods) == 0 {
			return len(count)+len(first) == 0
		}
		var earliest time.Time
		for _, p := range pods {
			if expiry := read(s.t, n.Target(p)).leaf().NotAfter; earliest.IsZero() || expiry.Before(earliest) {
				earliest = expiry
			}
		}
		return len(count) == 1 && count[0].Value[1] == fmt.Sprint(len(pods)) && len(first) == 1 && first[0].Value[1] == fmt.Sprint(earliest.Unix())
	})
}

// described compares the metrics with the table in docs/monitoring.md, in both
// directions.
func described(t *testing.T, served string, elsewhere ...string) {
	t.Helper()
	manual, err := os.ReadFile("../../docs/monitoring.md")
	node.Must(t, err)
	pairs := func(expression, text string) (all []string) {
		for _, found := range regexp.MustCompile(expression).FindAllStringSubmatch(text, -1) {
			all = append(all, found[1]+" "+found[2])
		}
		slices.Sort(all)
		return slices.Compact(all)
	}
	is, says := pairs(`(?m)^# TYPE (step_csi_\w+) (\w+)$`, served), pairs("(?m)^\\| `(step_csi_\\w+)` \\| (\\w+) \\|", string(manual))
	if is = slices.Sorted(slices.Values(append(is, elsewhere...))); !slices.Equal(is, says) {
		t.Errorf("the processes serve\n%s\nand docs/monitoring.md has\n%s", strings.Join(is, "\n"), strings.Join(says, "\n"))
	}
}

// The metrics are well-formed and contain no secret. They name no pod, unless the
// configuration asks for it.
func TestMetrics(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	r := startAuthority(t, ca, 1, "")
	n := r.prepareNode()
	address := "127.0.0.1:" + freePort(t)
	n.Flags = []string{"--http-address", address}
	n.Start()
	p := node.Pod{Name: "web-0"}
	r.admit(p)
	n.Publish(p)
	_, password := ca.Provisioner()
	_, authority := r.get(0, "/metrics")
	_, plugin := get(t, "http://"+address+"/metrics")
	if strings.Contains(plugin+authority, p.Name) || strings.Contains(plugin, "step_csi_certificate_") {
		t.Errorf("the metrics name a pod:\n%s%s", plugin, authority)
	}
	for _, want := range []string{
		`step_csi_signings_total{issuer="default",operation="publish",result="success"} 1`,
		`step_csi_signing_duration_seconds_count{issuer="default",operation="publish"} 1`,
		`step_csi_signings_waiting{issuer="default"} 0`,
		`step_csi_root_expiration_timestamp_seconds{fingerprint="` + ca.Fingerprint() + `",issuer="default"} `,
		`step_csi_volumes{issuer="default",namespace="shop"} 1`,
		`step_csi_build_info{`,
	} {
		if !strings.Contains(plugin, "\n"+want) {
			t.Errorf("the plugin's metrics lack %s:\n%s", want, plugin)
		}
	}
	for name, text := range map[string]string{"plugin": plugin, "authority": authority} {
		for _, secret := range []string{jwt(p.ID()), jwt("plugin"), password, "PRIVATE"} {
			if strings.Contains(text, secret) {
				t.Errorf("the metrics of the %s contain the secret %s", name, secret)
			}
		}
		check := exec.Command("promtool", "check", "metrics")
		check.Stdin = strings.NewReader(text)
		if out, err := check.CombinedOutput(); err != nil {
			t.Errorf("%s: promtool, of the package prometheus: %v\n%s", name, err, out)
		}
	}
	if status, body := get(t, "http://"+address+"/healthz"); status != http.StatusOK || body != "ok\n" {
		t.Errorf("healthz: %d %q", status, body)
	}

	n.Stop()
	n.ChangeConfig("\nissuers:\n", "\nmetrics: {perVolume: true}\nissuers:\n")
	n.Start()
	_, perVolume := get(t, "http://"+address+"/metrics")
	expiry := fmt.Sprintf(`step_csi_certificate_expiration_timestamp_seconds{issuer="default",namespace="shop",pod="web-0",volume="tls"} %s`,
		strconv.FormatFloat(float64(read(t, n.Target(p)).leaf().NotAfter.Unix()), 'g', -1, 64))
	if !strings.Contains(perVolume, "\n"+expiry+"\n") {
		t.Errorf("the metrics lack %s:\n%s", expiry, perVolume)
	}
	described(t, perVolume+authority,
		// TestX5CFilesRotate has these,
		"step_csi_issuer_token_certificate_expiration_timestamp_seconds gauge", "step_csi_issuer_token_certificate_issued_timestamp_seconds gauge",
		// and TestMetricsOfURLs these.
		"step_csi_issuer_url_in_use gauge", "step_csi_issuer_url_failures_total counter")
	n.Unpublish(p)
	node.Eventually(t, time.Minute, "the series end with the volume", func() bool {
		_, left := get(t, "http://"+address+"/metrics")
		return !strings.Contains(left, "web-0") && !strings.Contains(left, "\nstep_csi_volumes")
	})
}
