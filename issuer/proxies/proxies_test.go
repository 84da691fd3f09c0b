package proxies_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/ra"
	"github.com/flexstack/step-csi/issuer/ra/server"
	"github.com/flexstack/step-csi/issuer/stepca"
	"github.com/flexstack/step-csi/test/embeddedca"
)

// inProcess is set in the process that makes the connections: net/http reads the
// environment only once.
const inProcess = "STEP_CSI_TEST_FINGERPRINT"

// host is a name that no resolver is asked for: RFC 7686, section 2.
const host = "peer.onion"

// httpProxy is an HTTP proxy that knows one target for all hosts.
type httpProxy struct {
	target string
	mu     sync.Mutex
	asked  []string // the hosts of CONNECT requests
}

func (p *httpProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodConnect {
		http.Error(w, "only CONNECT", http.StatusMethodNotAllowed)
		return
	}
	p.mu.Lock()
	p.asked = append(p.asked, r.Host)
	p.mu.Unlock()
	target, err := net.Dial("tcp", p.target)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer target.Close()
	client, buffered, err := w.(http.Hijacker).Hijack()
	if err != nil {
		return
	}
	defer client.Close()
	_, _ = io.WriteString(client, "HTTP/1.1 200 OK\r\n\r\n")
	go func() {
		_, _ = io.Copy(target, buffered)
		target.Close()
	}()
	_, _ = io.Copy(client, target)
}

// Connections to the CA, to the registration authority and to the API server go through
// the proxy, unless NO_PROXY has their host. Errors name the proxy, and not its password.
func TestOneRuleForAllConnections(t *testing.T) {
	if os.Getenv(inProcess) != "" {
		connect(t)
		return
	}
	ca, err := embeddedca.Start(embeddedca.Config{Host: host})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ca.Stop)
	working := &httpProxy{target: ca.Address()}
	proxy := httptest.NewServer(working)
	t.Cleanup(proxy.Close)
	away := httptest.NewServer(nil)
	away.Close()

	run := func(environment ...string) string {
		t.Helper()
		child := exec.Command(os.Args[0], "-test.run", "^TestOneRuleForAllConnections$", "-test.v")
		child.Env = append(os.Environ(), append(environment, inProcess+"="+ca.Fingerprint(), "GODEBUG=netdns=go")...)
		out, err := child.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return string(out)
	}
	password := func(url string) string { return strings.Replace(url, "http://", "http://user:secret@", 1) }
	const hint = "of HTTPS_PROXY; to connect without it, add " + host + " to NO_PROXY"

	out := run("HTTPS_PROXY="+password(away.URL), "NO_PROXY=")
	for _, peer := range []string{"CA", "authority", "API server"} {
		if !strings.Contains(out, peer+" => ") || !strings.Contains(line(out, peer), "through the proxy "+away.URL+" "+hint) || !strings.Contains(line(out, peer), "connection refused") {
			t.Errorf("%s: %s", peer, line(out, peer))
		}
	}
	if strings.Contains(out, "secret") {
		t.Error("the output has the proxy's password")
	}

	out = run("HTTPS_PROXY="+away.URL, "NO_PROXY=.svc,.onion")
	for _, peer := range []string{"CA", "authority", "API server"} {
		if strings.Contains(line(out, peer), "proxy") || !strings.Contains(line(out, peer), "address") {
			t.Errorf("%s: %s", peer, line(out, peer))
		}
	}

	out = run("HTTPS_PROXY="+password(proxy.URL), "NO_PROXY=")
	if line(out, "CA") != "ok" {
		t.Errorf("the CA through the proxy: %s", line(out, "CA"))
	}
	working.mu.Lock()
	defer working.mu.Unlock()
	var ports []string
	for _, address := range working.asked {
		if _, port, err := net.SplitHostPort(address); err == nil {
			ports = append(ports, port)
		}
	}
	for _, port := range []string{"9000", "8443", "6443"} {
		if !strings.Contains(strings.Join(ports, " "), port) {
			t.Errorf("no request for port %s in %v", port, working.asked)
		}
	}
}

func line(out, peer string) string {
	_, rest, _ := strings.Cut(out, peer+" => ")
	text, _, _ := strings.Cut(rest, "\n")
	return text
}

// connect connects to a CA, to an authority and to an API server, and prints the errors.
func connect(t *testing.T) {
	show := func(peer string, err error) {
		text := "ok"
		if err != nil {
			text = err.Error()
		}
		t.Logf("%s => %s", peer, text)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	signer, err := stepca.New(stepca.Config{
		URL: "https://" + host + ":9000", Fingerprint: os.Getenv(inProcess), Provisioner: "admin",
		Password: func() ([]byte, error) { return []byte("password"), nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer signer.Close()
	show("CA", signer.Connect(ctx))

	authority, err := ra.New(ra.Config{
		URL: "https://" + host + ":8443", Fingerprint: os.Getenv(inProcess), Issuer: "default",
		Token: func() ([]byte, error) { return []byte("token"), nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer authority.Close()
	show("authority", authority.Connect(ctx))

	reviewer, err := server.NewTokenReview(&rest.Config{Host: "https://" + host + ":6443"})
	if err != nil {
		t.Fatal(err)
	}
	_, err = reviewer.Review(ctx, issuer.NewToken("a.b.c", time.Time{}))
	show("API server", err)
}
