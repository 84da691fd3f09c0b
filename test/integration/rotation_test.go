package integration

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.step.sm/crypto/minica"
	"go.step.sm/crypto/pemutil"

	"github.com/flexstack/step-csi/test/realca"
)

// A root goes, and an intermediate, while two pods talk by mutual TLS. The
// plugin is restarted in between, with the configuration that it had at first:
// that names the old root only.
func TestRotationOfRoots(t *testing.T) {
	t.Parallel()
	ca, err := realca.Start(t.TempDir())
	must(t, err)
	t.Cleanup(ca.Stop)
	old := ca.PKI()
	next, err := minica.New(minica.WithName("Next"))
	must(t, err)
	n := prepareNode(t, ca)
	n.changeConfig("duration:", "roots: {refresh: 1s}\n    duration:")
	n.start()
	short := map[string]string{"duration": "15s", "dns-names": "web.shop"}
	server, client := pod{name: "server-0", attributes: short}, pod{name: "client-0", attributes: short}
	long := pod{name: "long-0", attributes: map[string]string{"duration": "1h"}}
	for _, p := range []pod{server, client, long} {
		n.publish(p)
		defer n.unpublish(p)
	}
	c := startConversation(t, n.target(server), n.target(client))
	untouched := read(t, n.target(long)).leaf()

	t.Log("both roots are published")
	must(t, ca.Serve(old, old.Root, next.Root))
	n.waitForRoots(server, old.Root, next.Root)
	n.waitForRoots(client, old.Root, next.Root)
	n.waitForRoots(long, old.Root, next.Root)
	if !read(t, n.target(long)).leaf().Equal(untouched) {
		t.Error("a new certificate was issued for new roots")
	}

	t.Log("the CA signs under the new root")
	must(t, ca.Serve(next, old.Root, next.Root))
	n.kill()
	n.start()
	n.waitForIssuer(server, next.Intermediate)
	n.waitForIssuer(client, next.Intermediate)

	t.Log("the old root goes")
	must(t, ca.Serve(next, next.Root))
	n.waitForRoots(server, next.Root)
	n.waitForRoots(client, next.Root)
	n.waitForRoots(long, next.Root)
	n.stop()
	n.start()

	t.Log("the intermediate is another one")
	third, err := minica.New(minica.WithName("Third"))
	must(t, err)
	third.Intermediate = crossSign(t, third.Intermediate, next)
	must(t, ca.Serve(third, next.Root))
	n.waitForIssuer(server, third.Intermediate)
	n.waitForIssuer(client, third.Intermediate)

	if count := c.end(); count < 100 {
		t.Errorf("only %d handshakes", count)
	} else {
		t.Logf("%d handshakes", count)
	}
}

// crossSign makes the intermediate one below the root of another PKI.
func crossSign(t *testing.T, intermediate *x509.Certificate, under *minica.CA) *x509.Certificate {
	template := *intermediate
	template.AuthorityKeyId = nil
	der, err := x509.CreateCertificate(nil, &template, under.Root, intermediate.PublicKey, under.RootSigner)
	must(t, err)
	signed, err := x509.ParseCertificate(der)
	must(t, err)
	return signed
}

func (n *node) waitForRoots(p pod, want ...*x509.Certificate) {
	n.t.Helper()
	eventually(n.t, 20*time.Second, fmt.Sprintf("%s has %d roots", p.name, len(want)), func() bool {
		got, err := pemutil.ReadCertificateBundle(filepath.Join(n.target(p), "ca.crt"))
		return err == nil && slices.EqualFunc(got, want, (*x509.Certificate).Equal)
	})
}

func (n *node) waitForIssuer(p pod, intermediate *x509.Certificate) {
	n.t.Helper()
	eventually(n.t, 30*time.Second, p.name+" has a certificate of the other intermediate", func() bool {
		got, err := pemutil.ReadCertificateBundle(filepath.Join(n.target(p), "tls.crt"))
		return err == nil && got[0].CheckSignatureFrom(intermediate) == nil
	})
}

// conversation is a client and a server that shake hands all the time. Both
// reload their files for each handshake, as programs do that watch them.
type conversation struct {
	t       *testing.T
	stop    context.CancelFunc
	running sync.WaitGroup
	count   atomic.Int64
}

func startConversation(t *testing.T, server, client string) *conversation {
	t.Helper()
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return configOf(server) },
	})
	must(t, err)
	ctx, stop := context.WithCancel(t.Context())
	c := &conversation{t: t, stop: stop}
	t.Cleanup(func() { c.end() })
	c.running.Go(func() {
		<-ctx.Done()
		listener.Close()
	})
	c.running.Go(func() { serveEcho(listener, &c.running) })
	c.running.Go(func() {
		for ; ctx.Err() == nil; time.Sleep(10 * time.Millisecond) {
			if err := talk(listener.Addr().String(), client); err != nil {
				t.Errorf("handshake %d: %v", c.count.Load(), err)
				return
			}
			c.count.Add(1)
		}
	})
	return c
}

// end returns the number of handshakes.
func (c *conversation) end() int64 {
	c.stop()
	c.running.Wait()
	return c.count.Load()
}

func serveEcho(listener net.Listener, running *sync.WaitGroup) {
	for {
		connection, err := listener.Accept()
		if err != nil {
			return
		}
		running.Go(func() {
			defer connection.Close()
			_, _ = io.Copy(connection, connection)
		})
	}
}

// talk sees its word come back: with TLS 1.3, only then has the server accepted
// the client.
func talk(address, volume string) error {
	config, err := configOf(volume)
	if err != nil {
		return err
	}
	connection, err := tls.Dial("tcp", address, config)
	if err != nil {
		return err
	}
	defer connection.Close()
	if _, err := connection.Write([]byte("hello")); err != nil {
		return err
	}
	_, err = io.ReadFull(connection, make([]byte, 5))
	return err
}

// configOf reads one set of files.
func configOf(volume string) (*tls.Config, error) {
	set, err := filepath.EvalSymlinks(filepath.Join(volume, "..data"))
	if err != nil {
		return nil, err
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(set, "tls.crt"), filepath.Join(set, "tls.key"))
	if err != nil {
		return nil, err
	}
	roots, err := os.ReadFile(filepath.Join(set, "ca.crt"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(roots)
	return &tls.Config{
		Certificates: []tls.Certificate{pair}, RootCAs: pool, ClientCAs: pool,
		ClientAuth: tls.RequireAndVerifyClientCert, ServerName: "web.shop",
	}, nil
}
