package integration

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/smallstep/certificates/authority/provisioner"
	"google.golang.org/grpc/codes"

	"github.com/flexstack/step-csi/test/embeddedca"
	"github.com/flexstack/step-csi/test/node"
)

const configuredLifetimes = "    duration: {default: 1h, max: 24h, min: 1s}\n"

// inBothModesAt runs test with a node plugin that has these lifetimes configured, which
// signs at the CA itself, and through a registration authority.
func inBothModesAt(t *testing.T, ca *embeddedca.CA, lifetimes string, test func(t *testing.T, n *node.Node, publish func(node.Pod) error, readyz func() string)) {
	t.Run("mode node", func(t *testing.T) {
		n := node.New(t, binary, ca)
		n.ChangeConfig(configuredLifetimes, lifetimes)
		address := "127.0.0.1:" + freePort(t)
		n.Flags = []string{"--http-address", address}
		n.Start()
		test(t, n, n.TryPublish, func() string { return httpBody(t, "http://"+address+"/readyz") })
	})
	t.Run("mode ra", func(t *testing.T) {
		r := newAuthorities(t, ca)
		p := r.prepare("127.0.0.1", "")
		config, err := os.ReadFile(p.config)
		node.Must(t, err)
		if !strings.Contains(string(config), configuredLifetimes) {
			t.Fatalf("the configuration:\n%s", config)
		}
		node.Must(t, os.WriteFile(p.config, []byte(strings.ReplaceAll(string(config), configuredLifetimes, lifetimes)), 0o600))
		r.replicas = append(r.replicas, p)
		r.start(0)
		t.Cleanup(func() { r.stop(0) })
		r.waitReady(0)
		n := r.prepareNode()
		n.ChangeConfig(configuredLifetimes, lifetimes)
		n.Start()
		publish := func(p node.Pod) error {
			r.admit(p)
			return n.TryPublish(p)
		}
		test(t, n, publish, func() string {
			_, body := r.get(0, "/readyz")
			return body
		})
	})
}

func httpBody(t *testing.T, url string) string {
	t.Helper()
	answer, err := http.Get(url)
	node.Must(t, err)
	defer answer.Body.Close()
	var body strings.Builder
	node.Must(t, answer.Write(&body))
	return body.String()
}

func claimEightHours(c *provisioner.Claims) {
	eight := &provisioner.Duration{Duration: 8 * time.Hour}
	c.DefaultTLSDur, c.MaxTLSDur = eight, eight
}

// Without configured lifetimes, a CA that allows eight hours at most gives all pods
// certificates for eight hours. A pod that asks for more learns both values.
func TestLifetimesFollowTheCA(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	node.Must(t, ca.Claim(claimEightHours))
	inBothModesAt(t, ca, "", func(t *testing.T, n *node.Node, publish func(node.Pod) error, readyz func() string) {
		for name, test := range map[string]struct {
			duration string
			want     time.Duration
		}{"default-0": {"", 8 * time.Hour}, "hour-0": {"1h", time.Hour}} {
			p := node.Pod{Name: name}
			if test.duration != "" {
				p = p.With("duration", test.duration)
			}
			node.Must(t, publish(p))
			leaf := read(t, n.Target(p)).leaf()
			if got := leaf.NotAfter.Sub(leaf.NotBefore) - time.Minute; got != test.want {
				t.Errorf("%s has a certificate for %s, want %s", name, got, test.want)
			}
			n.Unpublish(p)
		}
		err := publish(node.Pod{Name: "long-0"}.With("duration", "24h"))
		expect(t, err, codes.PermissionDenied, "requested duration of 24h1m0s is more than the authorized maximum certificate duration of 8h1m0s")
		expect(t, err, codes.PermissionDenied, "--x509-max-dur")
		if body := readyz(); strings.Contains(body, "warning: duration") {
			t.Errorf("nothing is configured, and /readyz says:\n%s", body)
		}
	})
}

// A configured lifetime that the CA will refuse is reported before any pod asks for it,
// and does not stop the start.
func TestLifetimesThatTheCARefusesAreReported(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	node.Must(t, ca.Claim(claimEightHours))
	inBothModesAt(t, ca, "    duration: {default: 24h}\n", func(t *testing.T, _ *node.Node, publish func(node.Pod) error, readyz func() string) {
		const want = `issuer default: warning: duration.default is 24h0m0s, longer than 8h0m0s, the maximum of provisioner "admin" at the CA (claim maxTLSCertDuration)`
		node.Eventually(t, time.Minute, "a warning in /readyz", func() bool {
			body := readyz()
			return strings.Contains(body, want) && strings.Contains(body, `step ca provisioner update "admin" --x509-max-dur=24h0m0s`)
		})
		expect(t, publish(node.Pod{Name: "web-0"}), codes.PermissionDenied, "8h1m0s")
	})
}

// Without a DNS name in the certificate, clients compare the host with the common name. A
// pod that is called like another's Service must not pass for that: not by its name, and
// not by names of other types.
func TestCommonNameIsNobodysHost(t *testing.T) {
	t.Parallel()
	inBothModesAt(t, startCA(t), configuredLifetimes, func(t *testing.T, n *node.Node, publish func(node.Pod) error, _ func() string) {
		long := strings.Repeat("a", 60)
		for _, p := range []node.Pod{
			{Name: "my-db"},
			{Name: "db", Attributes: map[string]string{"service-names": "web"}},
			{Name: "my-db", UID: "uid-long", Attributes: map[string]string{"service-names": long}},
			{Name: "my-db", UID: "uid-asks", Attributes: map[string]string{"service-names": "web", "common-name": "${POD_NAME}"}},
		} {
			node.Must(t, publish(p))
			file := filepath.Join(n.Target(p), "tls.crt")
			for _, host := range []string{p.Name, "my-db.prod", "my-db.prod.svc"} {
				if out := checkHost(t, file, host); !strings.Contains(out, "does NOT match") {
					t.Errorf("%v: the certificate is that of the host %s: %s", p, host, out)
				}
			}
			if host := read(t, n.Target(p)).leaf().DNSNames; len(host) > 0 {
				if out := checkHost(t, file, host[0]); strings.Contains(out, "NOT") {
					t.Errorf("%v: the certificate is not that of its own host %s: %s", p, host[0], out)
				}
			}
			n.Unpublish(p)
		}
		expect(t, publish(node.Pod{Name: "my-db", UID: "uid-cn"}.With("common-name", "my-db")), codes.PermissionDenied, "common name my-db is not allowed")
	})
}

// checkHost has OpenSSL compare the certificate with the host, as curl, Python and libpq
// do.
func checkHost(t *testing.T, file, host string) string {
	t.Helper()
	out, err := exec.Command("openssl", "x509", "-in", file, "-noout", "-checkhost", host).CombinedOutput()
	if len(out) == 0 {
		t.Fatal(err)
	}
	return string(out)
}
