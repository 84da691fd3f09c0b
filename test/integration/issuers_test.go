package integration

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/flexstack/step-csi/test/embeddedca"
	"github.com/flexstack/step-csi/test/logs"
	"github.com/flexstack/step-csi/test/node"
)

// twoIssuers is a plugin with the issuers "default" and "other", in one of the modes.
// Each has a CA of its own. checked is the process that calls the CAs.
type twoIssuers struct {
	*node.Node
	t              *testing.T
	authority      *authorities // nil in mode node
	main, other    *embeddedca.CA
	passwordFile   string // of the issuer other
	config         string // of the process that calls the CAs
	checked        string // URL of the health of the process that calls the CAs
	checkedLog     *node.Log
	pluginHealth   string
	startProcesses func()
}

// inBothModes runs test with two issuers in mode node and in mode ra. Nothing is
// started.
func inBothModes(t *testing.T, test func(*testing.T, *twoIssuers)) {
	t.Parallel()
	t.Run("node", func(t *testing.T) {
		t.Parallel()
		two := &twoIssuers{t: t, main: startCA(t), other: startCA(t)}
		two.Node = node.New(t, binary, two.main)
		two.passwordFile = addIssuer(t, two.Config, two.other)
		two.config = two.Config
		two.serveHealth()
		two.checked, two.checkedLog = two.pluginHealth, two.Logs
		two.startProcesses = two.Launch
		test(t, two)
	})
	t.Run("ra", func(t *testing.T) {
		t.Parallel()
		two := &twoIssuers{t: t, main: startCA(t), other: startCA(t)}
		r := newAuthorities(t, two.main)
		replica := r.prepare("127.0.0.1", "")
		r.replicas = append(r.replicas, replica)
		t.Cleanup(func() {
			r.stop(0)
			if t.Failed() {
				t.Logf("the log of the authority:\n%s", replica.logs)
			}
		})
		two.authority = r
		two.passwordFile = addIssuer(t, replica.config, two.other)
		two.config = replica.config
		two.Node = r.prepareNode()
		node.Must(t, appendTo(two.Config, fmt.Sprintf(`
  other:
    url: %s
    fingerprint: %s
    provisioner: {type: ra, tokenFile: token}
    duration: {default: 1h, max: 24h, min: 1s}
    roots: {refresh: 1s}
`, r.url(), two.main.Fingerprint())))
		two.ChangeConfig(authorityHost, "localhost") // which has one address
		two.serveHealth()
		two.checked, two.checkedLog = "http://"+replica.http, replica.logs
		two.startProcesses = func() {
			r.start(0)
			two.Launch()
		}
		test(t, two)
	})
}

// addIssuer adds the issuer "other" to a configuration, which refreshes the roots of
// both issuers every second. It returns the path of the new issuer's password.
func addIssuer(t *testing.T, config string, ca *embeddedca.CA) (passwordFile string) {
	t.Helper()
	name, password := ca.Provisioner()
	passwordFile = filepath.Join(filepath.Dir(config), "other-password")
	node.Must(t, os.WriteFile(passwordFile, []byte(password), 0o600))
	text, err := os.ReadFile(config)
	node.Must(t, err)
	changed := strings.Replace(string(text), "  default:\n", fmt.Sprintf(`  other:
    url: %s
    fingerprint: %s
    provisioner: {type: jwk, name: %s, passwordFile: other-password}
    duration: {default: 1h, max: 24h, min: 1s}
    roots: {refresh: 1s}
  default:
    roots: {refresh: 1s}
`, ca.URL(), ca.Fingerprint(), name), 1)
	node.Must(t, os.WriteFile(config, []byte(changed), 0o600))
	return passwordFile
}

func appendTo(path, text string) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(content, text...), 0o600)
}

func (two *twoIssuers) serveHealth() {
	address := net.JoinHostPort("127.0.0.1", freePort(two.t))
	two.Flags = []string{"--http-address", address}
	two.pluginHealth = "http://" + address
}

// start starts the processes, and waits until all are ready.
func (two *twoIssuers) start() {
	two.t.Helper()
	two.startProcesses()
	two.WaitServing()
	for _, url := range []string{two.checked, two.pluginHealth} {
		two.waitReadyz(url, func(status int, _ string) bool { return status == http.StatusOK })
	}
}

// waitReadyz waits until /readyz answers as expected.
func (two *twoIssuers) waitReadyz(url string, expected func(status int, body string) bool) {
	two.t.Helper()
	var last string
	defer func() {
		if two.t.Failed() {
			two.t.Logf("the last answer of %s/readyz: %s", url, last)
		}
	}()
	node.Eventually(two.t, time.Minute, "the answer of readyz", func() bool {
		answer, err := http.Get(url + "/readyz")
		if err != nil {
			last = err.Error() // the process has not started yet
			return false
		}
		defer answer.Body.Close()
		body, err := io.ReadAll(answer.Body)
		node.Must(two.t, err)
		last = answer.Status + " " + string(body)
		return expected(answer.StatusCode, string(body))
	})
}

// reports waits until the process that calls the CAs is ready and its details have the
// words about the issuer other, and nothing about the issuer default.
func (two *twoIssuers) reports(words string) {
	two.t.Helper()
	two.waitReadyz(two.checked, func(status int, body string) bool {
		return status == http.StatusOK && strings.HasPrefix(body, "ok\n") && strings.Contains(about("other", body), words) &&
			!strings.Contains(withoutWarnings(about("default", body)), "issuer")
	})
}

// about returns the lines of the details about the issuer.
func about(issuer, body string) (lines string) {
	for line := range strings.Lines(body) {
		if strings.HasPrefix(line, "issuer "+issuer+": ") {
			lines += line
		}
	}
	return lines
}

// withoutWarnings removes the warnings about the claim, which these CAs do not have.
func withoutWarnings(lines string) (rest string) {
	for line := range strings.Lines(lines) {
		if !strings.Contains(line, ": warning: ") {
			rest += line
		}
	}
	return rest
}

// pod returns an admitted pod that uses the issuer.
func (two *twoIssuers) pod(name, issuer string) node.Pod {
	p := node.Pod{Name: name, Attributes: map[string]string{"issuer": issuer}}
	if two.authority != nil {
		two.authority.admit(p)
	}
	return p
}

// metric waits until the process that calls the CAs has the line among its metrics.
func (two *twoIssuers) metric(line string) {
	two.t.Helper()
	two.metricAt(two.checked, line)
}

func (two *twoIssuers) metricAt(url, line string) {
	two.t.Helper()
	node.Eventually(two.t, time.Minute, "the metric "+line, func() bool {
		_, metrics := get(two.t, url+"/metrics")
		return strings.Contains(metrics, "\n"+line)
	})
}

// One of two CAs is down when the processes start: they are ready, say so, and serve the
// other issuer. The issuer works when its CA is back. Later its CA dies again.
func TestOneCAIsDead(t *testing.T) {
	inBothModes(t, func(t *testing.T, two *twoIssuers) {
		two.other.Stop()
		two.start()
		two.reports("connection refused")
		two.metric(`step_csi_issuer_ready{issuer="default"} 1`)
		two.metric(`step_csi_issuer_ready{issuer="other"} 0`)
		two.Publish(two.pod("a-0", "default"))
		expect(t, two.TryPublish(two.pod("b-0", "other")), codes.Unavailable, "connection refused")
		node.Eventually(t, time.Minute, "the log names the CA that is down", func() bool {
			return two.checkedLog.Has(logs.Waiting + ` issuer="other" reason="the CA ` + two.other.URL())
		})

		node.Must(t, two.other.Resume())
		two.metric(`step_csi_issuer_ready{issuer="other"} 1`)
		two.eventuallyPublish(two.pod("b-0", "other"))

		two.other.Stop()
		two.reports("connection refused")
		two.metric(`step_csi_issuer_ready{issuer="other"} 0`)
		two.Publish(two.pod("a-1", "default"))
		expect(t, two.TryPublish(two.pod("b-1", "other")), codes.Unavailable, "connection refused")
		node.Must(t, two.other.Resume())
		two.eventuallyPublish(two.pod("b-1", "other"))
		for _, p := range []string{"a-0", "a-1", "b-0", "b-1"} {
			two.Unpublish(node.Pod{Name: p})
		}
	})
}

// eventuallyPublish retries like the kubelet.
func (two *twoIssuers) eventuallyPublish(p node.Pod) {
	two.t.Helper()
	var err error
	defer func() {
		if err != nil {
			two.t.Logf("the last publish: %v", err)
		}
	}()
	node.Eventually(two.t, time.Minute, "a publish", func() bool {
		err = two.TryPublish(p)
		return err == nil
	})
}

// The password of one of two issuers is wrong: the processes are ready, say so, follow
// the roots of both issuers, and serve the other one. A new password is used without a
// restart.
func TestOnePasswordIsWrong(t *testing.T) {
	inBothModes(t, func(t *testing.T, two *twoIssuers) {
		right, err := os.ReadFile(two.passwordFile)
		node.Must(t, err)
		node.Must(t, os.WriteFile(two.passwordFile, []byte("wrong"), 0o600))
		two.start()
		two.reports("the password does not open the key")
		two.metric(`step_csi_issuer_ready{issuer="default"} 1`)
		two.metric(`step_csi_issuer_ready{issuer="other"} 0`)
		two.Publish(two.pod("a-0", "default"))
		expect(t, two.TryPublish(two.pod("b-0", "other")), codes.Unavailable, "the password does not open the key")
		// The roots need no password.
		if two.authority != nil {
			two.metric(`step_csi_ra_issuer_last_answer_timestamp_seconds{issuer="other"} 1.`)
		}
		two.metricAt(two.pluginHealth, `step_csi_issuer_last_answer_timestamp_seconds{issuer="other",operation="roots"} 1.`)
		two.metricAt(two.pluginHealth, `step_csi_root_expiration_timestamp_seconds{fingerprint="`+two.other.Fingerprint()+`",issuer="other"}`)

		node.Must(t, os.WriteFile(two.passwordFile, right, 0o600))
		two.metric(`step_csi_issuer_ready{issuer="other"} 1`)
		two.eventuallyPublish(two.pod("b-0", "other"))

		// The same for a password that becomes wrong.
		node.Must(t, os.WriteFile(two.passwordFile, []byte("wrong"), 0o600))
		two.reports("the password does not open the key")
		two.metric(`step_csi_issuer_ready{issuer="other"} 0`)
		two.Publish(two.pod("a-1", "default"))
		for _, p := range []string{"a-0", "a-1", "b-0"} {
			two.Unpublish(node.Pod{Name: p})
		}
	})
}

// All CAs are down: the processes are not ready, and name the reason of each.
func TestAllCAsAreDead(t *testing.T) {
	inBothModes(t, func(t *testing.T, two *twoIssuers) {
		two.main.Stop()
		two.other.Stop()
		two.startProcesses()
		two.WaitServing()
		two.waitReadyz(two.checked, func(status int, body string) bool {
			return status == http.StatusServiceUnavailable && strings.Contains(about("default", body), two.main.URL()) && strings.Contains(about("other", body), two.other.URL())
		})
		node.Must(t, two.main.Resume())
		two.waitReadyz(two.checked, func(status int, body string) bool {
			return status == http.StatusOK && strings.Contains(about("other", body), two.other.URL())
		})
		two.waitReadyz(two.pluginHealth, func(status int, _ string) bool { return status == http.StatusOK })
	})
}

// A CA whose provisioner lets holders renew is reported, and nothing else changes. With
// requireDisableRenewal its issuer refuses to sign, says what to change, and signs when
// that is done, without a restart.
func TestHolderRenewalIsRefused(t *testing.T) {
	inBothModes(t, func(t *testing.T, two *twoIssuers) {
		config := two.Config
		if two.authority != nil {
			config = two.authority.replicas[0].config
		}
		text, err := os.ReadFile(config)
		node.Must(t, err)
		changed := strings.Replace(string(text), "passwordFile: other-password}", "passwordFile: other-password, requireDisableRenewal: true}", 1)
		node.Must(t, os.WriteFile(config, []byte(changed), 0o600))
		two.start()
		a, b := two.pod("a-0", "default"), two.pod("b-0", "other")
		two.Publish(a)
		two.metric(`step_csi_issuer_renewal_allowed{issuer="default"} 1`)
		two.metric(`step_csi_issuer_renewal_allowed{issuer="other"} 1`)
		two.reports(`warning: provisioner "admin" of the CA ` + two.other.URL() + " does not have the claim disableRenewal")
		for _, words := range []string{"requireDisableRenewal", `step ca provisioner update "admin" --disable-renewal=true`} {
			two.reports(words)
			expect(t, two.TryPublish(b), codes.Unavailable, words)
		}
		if two.other.Signs() != 0 {
			t.Error("the CA was asked to sign")
		}
		node.Eventually(t, time.Minute, "one warning for each issuer", func() bool { return two.checkedLog.Count(logs.HoldersRenew) == 2 })

		node.Must(t, two.other.DisableRenewal(true))
		node.Must(t, two.main.DisableRenewal(true))
		two.metric(`step_csi_issuer_renewal_allowed{issuer="default"} 0`)
		two.metric(`step_csi_issuer_renewal_allowed{issuer="other"} 0`)
		two.waitReadyz(two.checked, func(status int, body string) bool { return status == http.StatusOK && body == "ok\n" })
		two.eventuallyPublish(b)
		two.Publish(two.pod("a-1", "default"))

		node.Must(t, two.other.DisableRenewal(false))
		two.metric(`step_csi_issuer_renewal_allowed{issuer="other"} 1`)
		expect(t, two.TryPublish(two.pod("b-1", "other")), codes.Unavailable, "requireDisableRenewal")
		for _, p := range []string{"a-0", "a-1", "b-0"} {
			two.Unpublish(node.Pod{Name: p})
		}
	})
}
