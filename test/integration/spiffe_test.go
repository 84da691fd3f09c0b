package integration

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/test/logs"
	"github.com/flexstack/step-csi/test/node"
)

// workload is a volume as a program with go-spiffe reads it.
type workload struct {
	*x509svid.SVID
	*x509bundle.Bundle
}

// publishAs publishes the pod with another service account.
func publishAs(n *node.Node, serviceAccount string, p node.Pod) {
	n.T.Helper()
	req := n.MustRequest(p)
	req.VolumeContext["csi.storage.k8s.io/serviceAccount.name"] = serviceAccount
	_, err := n.NodePublishVolume(n.T.Context(), req)
	node.Must(n.T, err)
	n.T.Cleanup(func() { n.Unpublish(p) })
}

func loadWorkload(n *node.Node, p node.Pod) workload {
	n.T.Helper()
	return loadFiles(n, p, "tls.crt", "tls.key", "ca.crt")
}

// loadFiles loads files of one set: a renewal may replace the set at any time.
func loadFiles(n *node.Node, p node.Pod, certificate, key, roots string) (w workload) {
	n.T.Helper()
	inOneSet(n.T, n.Target(p), func(set string) error {
		svid, err := x509svid.Load(filepath.Join(set, certificate), filepath.Join(set, key))
		if err != nil {
			return err
		}
		bundle, err := x509bundle.Load(svid.ID.TrustDomain(), filepath.Join(set, roots))
		w = workload{svid, bundle}
		return err
	})
	return w
}

// loadSVID loads a volume with go-spiffe and returns its error.
func loadSVID(path string) error {
	_, err := x509svid.Load(filepath.Join(path, "tls.crt"), filepath.Join(path, "tls.key"))
	return err
}

// With every key type, the files are a valid X.509-SVID, and pods authenticate each
// other with it.
func TestSPIFFE(t *testing.T) {
	t.Parallel()
	n := newNode(t, startCA(t))
	stranger := spiffeid.RequireFromString("spiffe://cluster.local/ns/shop/sa/stranger")
	for _, keyType := range issuer.KeyTypes() {
		t.Run(string(keyType), func(t *testing.T) {
			attributes := map[string]string{"service-names": "web", "key-type": string(keyType)}
			web := node.Pod{Name: "web-" + string(keyType), Attributes: attributes}
			billing := node.Pod{Name: "billing-" + string(keyType), Attributes: attributes}
			n.Publish(web)
			defer n.Unpublish(web)
			publishAs(n, "billing.v2", billing) // a service account may have a dot

			server, client := loadWorkload(n, web), loadWorkload(n, billing)
			if server.ID.String() != "spiffe://cluster.local/ns/shop/sa/web" || client.ID.String() != "spiffe://cluster.local/ns/shop/sa/billing.v2" {
				t.Errorf("the IDs are %s and %s", server.ID, client.ID)
			}
			for _, w := range []workload{server, client} {
				if id, _, err := x509svid.Verify(w.Certificates, w.Bundle); err != nil || id != w.ID {
					t.Errorf("go-spiffe verified the SVID as %s: %v", id, err)
				}
				checkSVID(t, w.Certificates[0])
			}
			node.Must(t, handshake(server, client, client.ID, server.ID))
			if err := handshake(server, client, stranger, server.ID); err == nil || !strings.Contains(err.Error(), `server: unexpected ID "`+client.ID.String()+`"`) {
				t.Errorf("a server that expects another client: %v", err)
			}
			if err := handshake(server, client, client.ID, stranger); err == nil || !strings.Contains(err.Error(), `client: unexpected ID "`+server.ID.String()+`"`) {
				t.Errorf("a client that expects another server: %v", err)
			}
		})
	}
}

// With layout: spiffe, go-spiffe loads the files by the names of spiffe-helper and by those
// of the draft, also after a renewal, and pods authenticate each other with them.
func TestSPIFFELayout(t *testing.T) {
	t.Parallel()
	n := newNode(t, startCA(t))
	attributes := map[string]string{"service-names": "web", "layout": "spiffe", "duration": "12s"}
	web, billing := node.Pod{Name: "web-0", Attributes: attributes}, node.Pod{Name: "billing-0", Attributes: attributes}
	n.Publish(web)
	defer n.Unpublish(web)
	publishAs(n, "billing", billing)
	helper := func(p node.Pod) workload { return loadFiles(n, p, "svid.pem", "svid_key.pem", "svid_bundle.pem") }
	draft := func(p node.Pod) workload {
		return loadFiles(n, p, "credential-bundle.private-key.pem", "credential-bundle.private-key.pem", "cluster.local.spiffe-trust-bundle.pem")
	}
	first := helper(web).Certificates[0]
	node.Eventually(t, time.Minute, "a connection with renewed certificates", func() bool {
		server, client := draft(web), helper(billing)
		checkSVID(t, server.Certificates[0])
		return !server.Certificates[0].Equal(first) && handshake(server, client, client.ID, server.ID) == nil
	})
	node.Eventually(t, time.Minute, "a verified volume", func() bool {
		out, err := binary.Command("verify", "--certificate-file", "svid.pem", "--privatekey-file", "svid_key.pem", "--ca-file", "svid_bundle.pem", n.Target(web)).CombinedOutput()
		return err == nil && strings.Contains(string(out), "X.509-SVID    spiffe://cluster.local/ns/shop/sa/web")
	})
	if n.Logs.Count(logs.NoSVID) > 0 {
		t.Error("the plugin warns about an SVID")
	}
}

// checkSVID checks the rules for leaves in sections 2 and 4 of the specification,
// which libraries check only in part:
// https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md.
func checkSVID(t *testing.T, leaf *x509.Certificate) {
	t.Helper()
	if len(leaf.URIs) != 1 || leaf.IsCA {
		t.Errorf("URIs %s, is a CA: %v", leaf.URIs, leaf.IsCA)
	}
	const may = x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment | x509.KeyUsageKeyAgreement
	if leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 || leaf.KeyUsage&^may != 0 {
		t.Errorf("key usage %b", leaf.KeyUsage)
	}
	keyUsage := asn1.ObjectIdentifier{2, 5, 29, 15}
	for _, extension := range leaf.Extensions {
		if extension.Id.Equal(keyUsage) && !extension.Critical {
			t.Error("the key usage is not critical")
		}
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		if !slices.Contains(leaf.ExtKeyUsage, usage) {
			t.Errorf("the extended key usages are %v", leaf.ExtKeyUsage)
		}
	}
}

// handshake makes a TLS connection on which the client reads a line from the server.
// Each side accepts only the given ID of the other.
func handshake(server, client workload, clientID, serverID spiffeid.ID) error {
	atServer, atClient := net.Pipe()
	deadline := time.Now().Add(10 * time.Second)
	err := errors.Join(atServer.SetDeadline(deadline), atClient.SetDeadline(deadline))
	if err != nil {
		return err
	}
	served := make(chan error)
	go func() {
		defer atServer.Close()
		_, err := io.WriteString(tls.Server(atServer, tlsconfig.MTLSServerConfig(server, server, tlsconfig.AuthorizeID(clientID))), "hello\n")
		served <- err
	}()
	line := make([]byte, len("hello\n"))
	_, err = io.ReadFull(tls.Client(atClient, tlsconfig.MTLSClientConfig(client, client, tlsconfig.AuthorizeID(serverID))), line)
	atClient.Close()
	if err != nil {
		err = fmt.Errorf("client: %w", err)
	}
	if serverErr := <-served; serverErr != nil {
		err = errors.Join(fmt.Errorf("server: %w", serverErr), err)
	}
	return err
}

// A certificate without the SPIFFE ID, or with a second URI, is not an SVID. The
// plugin logs the second case once per volume.
func TestNoSPIFFE(t *testing.T) {
	t.Parallel()
	n := node.New(t, binary, startCA(t))
	config, err := os.ReadFile(n.Config)
	node.Must(t, err)
	node.Must(t, os.WriteFile(n.Config, append(config, `
trustDomain: example.org
policy:
  validations:
  - expression: request.uris.all(u, u.startsWith('spiffe://example.org/') || u == 'https://shop.example.org/web')
    message: another URI
`...), 0o600))
	n.Start()
	for _, test := range []struct {
		name, spiffe, uris, want string // want is a part of go-spiffe's error; empty for an SVID
		said                     bool
	}{
		{name: "one", spiffe: "true"},
		{name: "none", spiffe: "false", want: "no URI SAN"},
		{name: "two", spiffe: "true", uris: "https://shop.example.org/web", want: "more than one URI SAN", said: true},
		{name: "two-ids", spiffe: "true", uris: "spiffe://example.org/web", want: "more than one URI SAN", said: true},
		{name: "twice-the-same", spiffe: "true", uris: "spiffe://${TRUST_DOMAIN}/ns/shop/sa/web"},
		{name: "own", spiffe: "false", uris: "spiffe://example.org/web"},
		{name: "other", spiffe: "false", uris: "https://shop.example.org/web", want: "scheme"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := node.Pod{Name: test.name, Attributes: map[string]string{"service-names": "web", "spiffe": test.spiffe}}
			if test.said { // also not when it is renewed
				p.Attributes["duration"] = "12s"
			}
			if test.uris != "" {
				p.Attributes["uri-sans"] = test.uris
			}
			n.Publish(p)
			defer n.Unpublish(p)
			switch err := loadSVID(n.Target(p)); {
			case test.want == "" && err != nil:
				t.Error(err)
			case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
				t.Errorf("got %v, want an error with %q", err, test.want)
			}
			line := map[bool]string{true: "X.509-SVID    spiffe://example.org/", false: "X.509-SVID    no: it"}[test.want == ""]
			// A renewal may replace the files while verify reads them.
			node.Eventually(t, time.Minute, "the line "+line, func() bool {
				out, err := binary.Command("verify", n.Target(p)).CombinedOutput()
				return err == nil && strings.Contains(string(out), line)
			})
			want := map[bool]int{true: 1}[test.said]
			if test.said {
				node.Eventually(t, time.Minute, "a renewal", func() bool { return n.Logs.Count(logs.Renewed+` pod="shop/`+p.Name+`"`) > 0 })
			}
			// This is the last line that the call logs.
			node.Eventually(t, time.Minute, "the log line of the publish", func() bool { return n.Logs.Count(logs.CallSucceeded, p.VolumeID()) == 1 })
			if said := n.Logs.Count(logs.NoSVID, `pod="shop/`+p.Name+`"`, `volumeID="`+p.VolumeID()+`"`, `leave out uri-sans`, `spiffe: \"false\"`); said != want {
				t.Errorf("the plugin logged the warning %d times, want %d", said, want)
			}
		})
	}
}
