package integration

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.step.sm/crypto/minica"
	"go.step.sm/crypto/pemutil"

	"github.com/flexstack/step-csi/issuer/trust"
	"github.com/flexstack/step-csi/test/node"
)

// The CA replaces its root and later its intermediate, while two pods talk over
// mutual TLS. The plugin restarts in between with its original configuration, which
// names only the old root.
func TestRotationOfRoots(t *testing.T) {
	t.Parallel()
	ca := startRealCA(t)
	old := ca.PKI()
	next, err := minica.New(minica.WithName("Next"))
	node.Must(t, err)
	n := node.New(t, binary, ca)
	n.RefreshRoots(time.Second)
	n.ChangeConfig("issuers:", "renewal: {minInterval: 1s}\nissuers:")
	n.Start()
	short := map[string]string{"duration": "1m", "renew-before": "54s", "dns-names": "web.shop"}
	server, client := node.Pod{Name: "server-0", Attributes: short}, node.Pod{Name: "client-0", Attributes: short}
	long := node.Pod{Name: "long-0", Attributes: map[string]string{"duration": "1h"}}
	for _, p := range []node.Pod{server, client, long} {
		n.Publish(p)
		defer n.Unpublish(p)
	}
	c := startConversation(t, n.Target(server), n.Target(client))
	untouched := read(t, n.Target(long)).leaf()

	t.Log("both roots are published")
	node.Must(t, ca.Serve(old, old.Root, next.Root))
	waitForRoots(n, server, old.Root, next.Root)
	waitForRoots(n, client, old.Root, next.Root)
	waitForRoots(n, long, old.Root, next.Root)
	if !read(t, n.Target(long)).leaf().Equal(untouched) {
		t.Error("the plugin requested a new certificate when the roots changed")
	}
	c.goesOn()

	t.Log("the CA signs under the new root")
	node.Must(t, ca.Serve(next, old.Root, next.Root))
	n.Kill()
	n.Start()
	n.Republish()
	waitForIssuer(n, server, next.Intermediate)
	waitForIssuer(n, client, next.Intermediate)
	c.goesOn()

	t.Log("the CA removes the old root")
	node.Must(t, ca.Serve(next, next.Root))
	waitForRoots(n, server, next.Root)
	waitForRoots(n, client, next.Root)
	waitForRoots(n, long, next.Root)
	n.Stop()
	n.Start()
	n.Republish()
	c.goesOn()

	t.Log("the CA uses another intermediate")
	third, err := minica.New(minica.WithName("Third"))
	node.Must(t, err)
	third.Intermediate = crossSign(t, third.Intermediate, next)
	node.Must(t, ca.Serve(third, next.Root))
	waitForIssuer(n, server, third.Intermediate)
	waitForIssuer(n, client, third.Intermediate)

	c.goesOn()
	c.end()
}

// crossSign certifies the intermediate with the root of another PKI.
func crossSign(t *testing.T, intermediate *x509.Certificate, under *minica.CA) *x509.Certificate {
	template := *intermediate
	template.AuthorityKeyId = nil
	der, err := x509.CreateCertificate(nil, &template, under.Root, intermediate.PublicKey, under.RootSigner)
	node.Must(t, err)
	signed, err := x509.ParseCertificate(der)
	node.Must(t, err)
	return signed
}

func waitForRoots(n *node.Node, p node.Pod, want ...*x509.Certificate) {
	n.T.Helper()
	node.Eventually(n.T, time.Minute, fmt.Sprintf("%s has %d roots", p.Name, len(want)), func() bool {
		got, err := pemutil.ReadCertificateBundle(filepath.Join(n.Target(p), "ca.crt"))
		return err == nil && len(got) == len(want) && trust.Same(got, want)
	})
}

func waitForIssuer(n *node.Node, p node.Pod, intermediate *x509.Certificate) {
	n.T.Helper()
	node.Eventually(n.T, time.Minute, p.Name+" has a certificate from the new intermediate", func() bool {
		got, err := pemutil.ReadCertificateBundle(filepath.Join(n.Target(p), "tls.crt"))
		return err == nil && got[0].CheckSignatureFrom(intermediate) == nil
	})
}

// conversation is a client and a server that make handshakes continuously. Both
// reload their files for each handshake, like programs that watch the files.
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
	node.Must(t, err)
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
			err := talk(listener.Addr().String(), client)
			if ctx.Err() != nil {
				return // end may have closed the listener
			}
			if err != nil {
				t.Errorf("handshake %d: %v", c.count.Load(), err)
				return
			}
			c.count.Add(1)
		}
	})
	return c
}

// goesOn waits for handshakes that begin after the call.
func (c *conversation) goesOn() {
	c.t.Helper()
	enough := c.count.Load() + 3 // the first may have begun before
	node.Eventually(c.t, 60*time.Second, "the handshakes go on", func() bool {
		return c.t.Failed() || c.count.Load() >= enough
	})
}

// end stops the conversation.
func (c *conversation) end() {
	c.stop()
	c.running.Wait()
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

// talk sends a word and reads it back. With TLS 1.3, only the answer proves that the
// server accepted the client.
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

// configOf reads the files of one set of the volume: those in use, or the next ones if they
// are removed meanwhile, because a renewal follows new roots.
func configOf(volume string) (*tls.Config, error) {
	for {
		link, err := os.Readlink(filepath.Join(volume, "..data"))
		if err != nil {
			return nil, err
		}
		set := filepath.Join(volume, link)
		config, err := configOfSet(set)
		if _, gone := os.Lstat(set); err == nil || !errors.Is(gone, fs.ErrNotExist) {
			return config, err
		}
	}
}

func configOfSet(set string) (*tls.Config, error) {
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
