package integration

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/flexstack/step-csi/issuer/renewal"
	"github.com/flexstack/step-csi/test/embeddedca"
	"github.com/flexstack/step-csi/test/logs"
	"github.com/flexstack/step-csi/test/node"
	"github.com/flexstack/step-csi/test/proxy"
)

// fleetingHost is a host name that forgetHost removes and restores. Resolvers never
// look up .onion names in DNS (RFC 7686), so only /etc/hosts can resolve it.
const fleetingHost = "ca.onion"

// forgetHost removes fleetingHost from /etc/hosts, or restores it. It overwrites the
// name in place, so that no reader sees half of the file.
func forgetHost(t *testing.T, forget bool) {
	t.Helper()
	old, new := fleetingHost, strings.Repeat("x", len(fleetingHost))
	if !forget {
		old, new = new, old
	}
	hosts, err := os.OpenFile("/etc/hosts", os.O_RDWR, 0)
	node.Must(t, err)
	defer hosts.Close()
	content, err := os.ReadFile("/etc/hosts")
	node.Must(t, err)
	_, err = hosts.WriteAt([]byte(new), int64(bytes.Index(content, []byte(old))))
	node.Must(t, err)
}

// hostsCache is how long Go caches the contents of /etc/hosts.
const hostsCache = 5 * time.Second

// distantCA is a CA behind a proxy that injects network faults.
type distantCA struct {
	*embeddedca.CA
	proxy *proxy.Proxy
	host  string
}

func startDistantCA(t *testing.T) *distantCA {
	t.Helper()
	ca, err := embeddedca.Start(embeddedca.Config{Host: fleetingHost})
	node.Must(t, err)
	t.Cleanup(ca.Stop)
	return &distantCA{CA: ca, proxy: startProxy(t, ca.Address()), host: "127.0.0.1"}
}

func startProxy(t *testing.T, target string) *proxy.Proxy {
	t.Helper()
	p, err := proxy.Start(target)
	node.Must(t, err)
	t.Cleanup(p.Close)
	return p
}

// URL returns the URL of the proxy.
func (ca *distantCA) URL() string {
	return "https://" + strings.Replace(ca.proxy.Address(), "127.0.0.1", ca.host, 1)
}

// outage is one reason why the CA issues no certificates.
type outage struct {
	host       string // in the CA's URL; empty means its IP address
	begin, end func(*testing.T, *distantCA)
	// says is the error that users read in the volume's health.
	says string
	// remembered is how long a cache outside the plugin can extend the outage.
	remembered time.Duration
}

// network is an outage that a network fault causes.
func network(f proxy.Fault, says string) outage {
	return outage{
		begin: func(t *testing.T, ca *distantCA) { node.Must(t, ca.proxy.Set(f)) },
		end:   func(t *testing.T, ca *distantCA) { node.Must(t, ca.proxy.Set(proxy.None)) },
		says:  says,
	}
}

// answers is an outage in which the CA, or a proxy in front of it, answers with an
// error.
func answers(status int, body, says string) outage {
	handler := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body))
	})
	return outage{
		begin: func(_ *testing.T, ca *distantCA) { ca.Intercept(func(http.Handler) http.Handler { return handler }) },
		end:   func(_ *testing.T, ca *distantCA) { ca.Intercept(nil) },
		says:  says,
	}
}

// expiredCA is an outage in which the CA's own serving certificate has expired.
func expiredCA() outage {
	return outage{
		begin: func(t *testing.T, ca *distantCA) { ca.Stop(); node.Must(t, ca.ResumeExpired()) },
		end:   func(t *testing.T, ca *distantCA) { ca.Stop(); node.Must(t, ca.Resume()) },
		says:  "certificate has expired or is not yet valid",
	}
}

// anotherCA is an outage in which a newly created CA answers at the same URL. The
// plugin must never send it a token.
func anotherCA() outage {
	var another *embeddedca.CA
	return outage{
		begin: func(t *testing.T, ca *distantCA) {
			another = startCA(t)
			ca.proxy.To(another.Address())
		},
		end: func(t *testing.T, ca *distantCA) {
			if signs := another.Signs(); signs != 0 {
				t.Errorf("the plugin sent %d signing requests to another CA", signs)
			}
			ca.proxy.To(ca.Address())
		},
		says: "that fingerprint or caBundleFile (in the chart: caBundle) is that of this CA",
	}
}

// namelessCA is an outage in which the CA's host name does not resolve. It also
// closes the open connections, which need no name.
func namelessCA() outage {
	return outage{
		host: fleetingHost,
		begin: func(t *testing.T, ca *distantCA) {
			forgetHost(t, true)
			node.Must(t, ca.proxy.Set(proxy.Reset))
			node.Must(t, ca.proxy.Set(proxy.None))
		},
		end:        func(t *testing.T, _ *distantCA) { forgetHost(t, false) },
		says:       "address " + fleetingHost + ": no suitable address found",
		remembered: hostsCache,
	}
}

// Each outage lasts longer than a certificate's lifetime. The mounted files stay,
// the volume's health names the reason, the retries follow the backoff, and the next
// retry after the outage succeeds.
func TestOutages(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]outage{
		"refuses":           network(proxy.Refuse, "connection refused"),
		"resets":            network(proxy.Reset, "connection reset by peer"),
		"resets its answer": network(proxy.ResetAnswer, "connection reset by peer"),
		"truncates":         network(proxy.Truncate(50), "EOF"),
		"500": answers(http.StatusInternalServerError, `{"status":500,"message":"The certificate authority encountered an Internal Server Error."}`,
			"The certificate authority encountered an Internal Server Error"),
		"503 of a proxy":  answers(http.StatusServiceUnavailable, "<html>no healthy upstream</html>", "the answer is not from step-ca, but from something in front of it: HTTP 503 Service Unavailable"),
		"its own expired": expiredCA(),
		"another CA":      anotherCA(),
		"no name":         namelessCA(),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ca := startDistantCA(t)
			if o.host != "" {
				ca.host = o.host
			}
			n := newNode(t, ca)
			survive(t, n, ca, o)
		})
	}
}

// survive publishes a short-lived certificate, begins the outage, waits until the
// certificate has expired, ends the outage and waits for the renewal.
func survive(t *testing.T, n *node.Node, ca *distantCA, o outage) {
	short := node.Pod{Name: "short-0", Attributes: map[string]string{"duration": "9s"}}
	long := node.Pod{Name: "long-0"}
	n.Publish(short)
	n.Publish(long)
	defer func() { n.Unpublish(short); n.Unpublish(long) }()
	longBefore := snapshot(n, long)

	o.begin(t, ca)
	// On a slow machine, there may have been a renewal before.
	before, leaf := snapshot(n, short), read(t, n.Target(short)).leaf()
	v := renewal.Validity{Issued: issued(leaf), NotAfter: leaf.NotAfter}
	begin, connections := time.Now(), ca.proxy.Connections()
	// On a slow machine, the certificate may have expired before the first look.
	waitTroubleBefore(n, short, v.NotAfter, o.says)
	waitTrouble(n, short, "CertificateExpired", o.says)
	tries := failedRenewals(n)
	most := mostTries(v, v.Due(), time.Now()) // with the shortest pauses
	if tries > most || most > 60 {
		t.Errorf("%d attempts in %s, want at most %d", tries, time.Since(begin), most)
	}
	if made := ca.proxy.Connections() - connections; made > int64(3*tries+3) {
		t.Errorf("%d connections for %d attempts", made, tries)
	}
	if snapshot(n, short) != before || snapshot(n, long) != longBefore {
		t.Error("the files changed during the outage")
	}

	tries, ending := failedRenewals(n), time.Now()
	o.end(t, ca)
	end := time.Now()
	waitRecovery(n, short)
	// Attempts fail until the outage has ended. One can still be in flight then, and the test
	// reads the plugin's log with a delay.
	if more, most := failedRenewals(n)-tries, 4+mostTries(v, ending, end.Add(o.remembered)); more > most {
		t.Errorf("%d more failed attempts within %s after the outage", more, time.Since(end))
	}
	if snapshot(n, short) == before || !strings.Contains(snapshot(n, short), "BEGIN CERTIFICATE") {
		t.Error("the files are unchanged after the outage")
	}
	read(t, n.Target(short))
	if snapshot(n, long) != longBefore {
		t.Error("the plugin renewed a certificate that is not due")
	}
}

// mostTries is the largest number of attempts that the backoff allows in that time,
// with the shortest pauses that the jitter can give.
func mostTries(v renewal.Validity, from, to time.Time) int {
	tries := 0
	for at := from; at.Before(to); at = at.Add(v.Retry(tries, at, 1)) {
		tries++
	}
	return tries
}

// failedRenewals counts the failed renewals in the log.
func failedRenewals(n *node.Node) int { return n.Logs.Count(logs.RenewalFailed) }

// snapshot returns the contents of a volume.
func snapshot(n *node.Node, p node.Pod) string {
	n.T.Helper()
	all, err := os.Readlink(filepath.Join(n.Target(p), "..data"))
	node.Must(n.T, err)
	for _, file := range []string{"tls.crt", "tls.key", "ca.crt"} {
		content, err := os.ReadFile(filepath.Join(n.Target(p), file))
		node.Must(n.T, err)
		all += fmt.Sprintf("\n%s\n%s", file, content)
	}
	return all
}

// trouble returns the reasons and messages of the volume's health; empty if the
// volume is healthy.
func trouble(n *node.Node, p node.Pod) string {
	n.T.Helper()
	answer, err := n.NodeGetVolumeHealth(n.T.Context(), &csi.NodeGetVolumeHealthRequest{VolumeId: p.VolumeID(), VolumePublishPath: n.Target(p)})
	node.Must(n.T, err)
	var all []string
	for _, s := range answer.GetVolumeHealth().GetHealthStatuses() {
		all = append(all, s.GetReason()+": "+s.GetMessage())
	}
	return strings.Join(all, "\n")
}

// waitTrouble waits until the volume's health has the reason and a message that
// contains the words.
func waitTrouble(n *node.Node, p node.Pod, reason, words string) {
	n.T.Helper()
	var says string
	defer func() {
		if n.T.Failed() {
			n.T.Logf("the volume's health: %s", says)
		}
	}()
	node.Eventually(n.T, 60*time.Second, reason+" with "+words, func() bool {
		says = trouble(n, p)
		return strings.HasPrefix(says, reason) && strings.Contains(says, words)
	})
}

// waitTroubleBefore waits until the volume's health has a message that contains the words.
// Until the expiry, the reason must be that renewals fail.
func waitTroubleBefore(n *node.Node, p node.Pod, expiry time.Time, words string) {
	n.T.Helper()
	node.Eventually(n.T, 60*time.Second, "trouble with "+words, func() bool {
		expired := !time.Now().Before(expiry)
		says := trouble(n, p)
		return strings.Contains(says, words) && (strings.HasPrefix(says, "RenewalFailing") || expired)
	})
}

func waitRecovery(n *node.Node, p node.Pod) {
	n.T.Helper()
	node.Eventually(n.T, 60*time.Second, "recovery", func() bool { return trouble(n, p) == "" })
}

// recoverAfter ends an outage and waits for the recovery. The next attempt must
// succeed, except one that was in flight when the outage ended.
func recoverAfter(n *node.Node, p node.Pod, end func()) {
	n.T.Helper()
	end()
	tries := failedRenewals(n)
	waitRecovery(n, p)
	if more := failedRenewals(n) - tries; more > 1 {
		n.T.Errorf("%d more failed attempts after the outage", more)
	}
	read(n.T, n.Target(p))
}
