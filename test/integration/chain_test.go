package integration

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.step.sm/crypto/minica"
	"go.step.sm/crypto/pemutil"

	"github.com/flexstack/step-csi/test/node"
	"github.com/flexstack/step-csi/test/realca"
)

// withRealCA runs the test with a node plugin that calls the real step-ca itself, and with one
// that calls the registration authority. Both ask for the roots every second.
func withRealCA(t *testing.T, test func(t *testing.T, ca *realca.CA, n *node.Node, authority func() string)) {
	t.Helper()
	t.Run("node", func(t *testing.T) {
		t.Parallel()
		ca := startRealCA(t)
		n := node.New(t, binary, ca)
		n.RefreshRoots(time.Second)
		test(t, ca, n, func() string { return "" })
	})
	t.Run("ra", func(t *testing.T) {
		t.Parallel()
		ca := startRealCA(t)
		r := newAuthorities(t, ca)
		r.startReplicas(1, "")
		r.stop(0)
		config, err := os.ReadFile(r.replicas[0].config)
		node.Must(t, err)
		node.Must(t, os.WriteFile(r.replicas[0].config, []byte(strings.Replace(string(config), "    duration:", "    roots: {refresh: 1s}\n    duration:", 1)), 0o600))
		r.start(0)
		r.waitReady(0)
		n := r.prepareNode()
		n.RefreshRoots(time.Second)
		for _, name := range podNames {
			r.admit(node.Pod{Name: name})
		}
		test(t, ca, n, func() string { return r.replicas[0].logs.String() })
	})
}

var podNames = []string{"web-0", "web-1", "web-2"}

// certified makes a certificate of the subject's name and key by another CA, or by itself.
func certified(t *testing.T, subject, by *x509.Certificate, signer any, change func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	template := *subject
	template.AuthorityKeyId, template.SerialNumber = nil, nil
	change(&template)
	der, err := x509.CreateCertificate(rand.Reader, &template, by, subject.PublicKey, signer)
	node.Must(t, err)
	c, err := x509.ParseCertificate(der)
	node.Must(t, err)
	return c
}

// The CA has replaced its root, and the old root certifies the new one. Peers that know only the
// old root, only the new root or both accept a pod's certificate in a TLS handshake: programs
// with OpenSSL, with GnuTLS and in Go.
func TestCrossSignedChainReachesPeers(t *testing.T) {
	t.Parallel()
	withRealCA(t, func(t *testing.T, ca *realca.CA, n *node.Node, _ func() string) {
		next := ca.PKI()
		old, err := minica.New(minica.WithName("Old"))
		node.Must(t, err)
		another, err := minica.New(minica.WithName("Another"))
		node.Must(t, err)
		// minica's roots allow only one intermediate below them.
		old.Root = certified(t, old.Root, old.Root, old.RootSigner, func(c *x509.Certificate) {
			c.MaxPathLen, c.AuthorityKeyId = 2, c.SubjectKeyId
		})
		cross := certified(t, next.Root, old.Root, old.RootSigner, func(*x509.Certificate) {})
		node.Must(t, ca.ServeChain(next, []*x509.Certificate{cross, next.Root}, next.Root, old.Root))
		n.Start()
		p := node.Pod{Name: "web-0", Attributes: map[string]string{"dns-names": "web.shop"}}
		n.Publish(p)
		defer n.Unpublish(p)

		sent := read(t, n.Target(p)).chain
		if !slices.EqualFunc(sent[1:], []*x509.Certificate{next.Intermediate, cross}, (*x509.Certificate).Equal) {
			t.Fatalf("tls.crt has %d certificates", len(sent))
		}
		address := serve(t, n.Target(p))
		both, err := pemutil.ReadCertificateBundle(filepath.Join(n.Target(p), "ca.crt"))
		node.Must(t, err)
		for known, roots := range map[string][]*x509.Certificate{
			"old": {old.Root}, "new": {next.Root}, "both": both, "another": {another.Root},
		} {
			file := filepath.Join(t.TempDir(), "roots.pem")
			var data []byte
			for _, root := range roots {
				data = append(data, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Raw})...)
			}
			node.Must(t, os.WriteFile(file, data, 0o600))
			for program, handshake := range map[string]func() error{
				"OpenSSL": func() error {
					return client("openssl", "s_client", "-connect", address, "-servername", "web.shop", "-verify_hostname", "web.shop",
						"-verify_return_error", "-no-CApath", "-no-CAstore", "-CAfile", file)
				},
				"GnuTLS": func() error {
					host, port, _ := net.SplitHostPort(address)
					return client("gnutls-cli", "--x509cafile", file, "--sni-hostname", "web.shop", "--verify-hostname", "web.shop", "--port", port, host)
				},
				"Go": func() error {
					pool := x509.NewCertPool()
					pool.AppendCertsFromPEM(data)
					c, err := tls.Dial("tcp", address, &tls.Config{RootCAs: pool, ServerName: "web.shop"})
					if err != nil {
						return err
					}
					return c.Close()
				},
			} {
				if err := handshake(); (err == nil) != (known != "another") {
					t.Errorf("%s with the %s root: %v", program, known, err)
				}
			}
		}
	})
}

// client runs a TLS client that ends after the handshake.
func client(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
}

// serve serves TLS with the files of a volume, as programs do: it sends all of tls.crt.
func serve(t *testing.T, volume string) (address string) {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(filepath.Join(volume, "tls.crt"), filepath.Join(volume, "tls.key"))
	node.Must(t, err)
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}})
	node.Must(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			_ = connection.(*tls.Conn).Handshake()
			connection.Close()
		}
	}()
	t.Cleanup(func() {
		listener.Close()
		<-done
	})
	return listener.Addr().String()
}

// The CA's intermediate expires long before the certificates that it signs. The expiry in
// metrics, in the log and in `step-csi verify` is that of the intermediate, also after a restart,
// and one warning names it. When the CA has a new intermediate, the volumes are renewed early.
func TestIntermediateLimitsVolumes(t *testing.T) {
	t.Parallel()
	withRealCA(t, func(t *testing.T, ca *realca.CA, n *node.Node, authority func() string) {
		pki := ca.PKI()
		short := *pki
		short.Intermediate = certified(t, pki.Intermediate, pki.Root, pki.RootSigner, func(c *x509.Certificate) {
			c.NotAfter = time.Now().Add(20 * time.Minute).Truncate(time.Second)
		})
		node.Must(t, ca.Serve(&short, pki.Root))
		address := "127.0.0.1:" + freePort(t)
		n.Flags = []string{"--http-address", address}
		n.ChangeConfig("issuers:", "renewal: {minInterval: 1s}\nissuers:")
		n.Start()
		first := map[string]*x509.Certificate{}
		for _, name := range podNames {
			p := node.Pod{Name: name, Attributes: map[string]string{"duration": "1h"}}
			n.Publish(p)
			defer n.Unpublish(p)
			first[name] = read(t, n.Target(p)).leaf()
		}
		serial, expiry := short.Intermediate.SerialNumber.String(), short.Intermediate.NotAfter
		const warning = "Warning: a certificate of the CA expires before the certificates that it signs"
		for what, log := range map[string]func() string{"node plugin": n.Logs.String, "authority": authority} {
			if log() == "" {
				continue // mode node has no authority
			}
			node.Eventually(t, time.Minute, "a warning of the "+what, func() bool { return strings.Contains(log(), warning) })
			if text := log(); strings.Count(text, warning) != 1 || !strings.Contains(text, `Intermediate CA\" (serial number `+serial) {
				t.Errorf("the log of the %s has %d warnings:\n%s", what, strings.Count(text, warning), text)
			}
		}
		expect := func(when string, want time.Time) {
			t.Helper()
			node.Eventually(t, time.Minute, "the expiry "+when, func() bool {
				return earliestExpiry(address) == want.Unix()
			})
		}
		expect("after the publish", expiry)
		n.Kill()
		n.Start()
		expect("after a restart", expiry)
		n.Republish()
		expect("after the republish", expiry)
		out, err := binary.Command("verify", n.Target(node.Pod{Name: "web-0"})).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "limited to    "+expiry.UTC().Format(time.RFC3339)) || !strings.Contains(string(out), serial) {
			t.Errorf("verify: %v\n%s", err, out)
		}

		node.Must(t, ca.Serve(pki, pki.Root))
		for _, name := range podNames {
			node.Eventually(t, 2*time.Minute, name+" has the new intermediate", func() bool {
				chain := read(t, n.Target(node.Pod{Name: name})).chain
				return chain[1].Equal(pki.Intermediate) && !chain[0].Equal(first[name])
			})
		}
		if !n.Logs.Has("Certificates are renewed early, because the CA has replaced its own") {
			t.Error("the renewals were not early")
		}
		node.Eventually(t, time.Minute, "an expiry after that of the old intermediate", func() bool { return earliestExpiry(address) > expiry.Unix() })
	})
}

// earliestExpiry returns the metric of the node plugin; 0 if it cannot be read.
func earliestExpiry(address string) int64 {
	answer, err := http.Get("http://" + address + "/metrics")
	if err != nil {
		return 0
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return 0
	}
	return int64(valueOf(string(body), `step_csi_volumes_earliest_expiration_timestamp_seconds{issuer="default",namespace="shop"}`))
}
