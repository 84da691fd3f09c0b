package integration

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/ra"
	"github.com/flexstack/step-csi/issuer/ra/rapb"
	"github.com/flexstack/step-csi/issuer/stepca"
	"github.com/flexstack/step-csi/test/logs"
	"github.com/flexstack/step-csi/test/node"
	"github.com/flexstack/step-csi/test/realca"
	"github.com/flexstack/step-csi/test/reviews"
)

func startRealCA(t *testing.T) *realca.CA {
	t.Helper()
	return startRealCAIn(t, t.TempDir())
}

func startRealCAIn(t *testing.T, directory string) *realca.CA {
	t.Helper()
	program, err := stepCA()
	node.Must(t, err)
	ca, err := realca.Start(program, directory)
	node.Must(t, err)
	t.Cleanup(func() {
		ca.Stop()
		if t.Failed() {
			t.Logf("step-ca's log:\n%s", ca.Log())
		}
	})
	return ca
}

// renew asks the CA to renew the certificate, as a thief of the key would.
func renew(t *testing.T, ca rootedCA, f files) (status int) {
	t.Helper()
	pair := tls.Certificate{PrivateKey: f.key}
	for _, certificate := range f.chain {
		pair.Certificate = append(pair.Certificate, certificate.Raw)
	}
	answer, err := caClient(ca, pair).Post(ca.URL()+"/1.0/renew", "application/json", nil)
	node.Must(t, err)
	answer.Body.Close()
	return answer.StatusCode
}

func caClient(ca rootedCA, pairs ...tls.Certificate) *http.Client {
	roots := x509.NewCertPool()
	roots.AddCert(ca.Root())
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: pairs}}}
}

// revoked returns the serial numbers in the CA's CRL.
func revoked(t *testing.T, ca rootedCA) string {
	t.Helper()
	answer, err := caClient(ca).Get(ca.URL() + "/1.0/crl")
	node.Must(t, err)
	defer answer.Body.Close()
	der, err := io.ReadAll(answer.Body)
	node.Must(t, err)
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return "" // the CA has no CRL yet
	}
	var serials []string
	for _, entry := range list.RevokedCertificateEntries {
		serials = append(serials, entry.SerialNumber.String())
	}
	return strings.Join(serials, " ")
}

// Deleting a pod revokes its certificate: the real CA refuses to renew it and lists
// it in the CRL. Other certificates stay valid.
func TestRevokeOnDelete(t *testing.T) {
	t.Parallel()
	ca := startRealCA(t)
	r := startAuthority(t, ca, 1, "")
	for mode, n := range map[string]*node.Node{"node": newNode(t, ca), "ra": r.newNode()} {
		for _, keyType := range []string{"ecdsa-p256", "ecdsa-p521", "ed25519", "rsa-2048"} {
			p := node.Pod{Name: "web-0", UID: mode + keyType, Attributes: map[string]string{"revoke-on-delete": "true", "duration": "5m", "key-type": keyType}}
			other := node.Pod{Name: "web-1", UID: mode + keyType + "-other", Attributes: map[string]string{"duration": "5m"}}
			r.admit(p)
			r.admit(other)
			n.Publish(p)
			n.Publish(other)
			credential, kept := read(t, n.Target(p)), read(t, n.Target(other))
			if status := renew(t, ca, credential); status != http.StatusCreated {
				t.Errorf("%s: before the revocation, the CA answers a renewal with %d", mode, status)
			}
			n.Unpublish(p)
			n.Unpublish(other)
			serial := credential.leaf().SerialNumber.String()
			done := logs.Revoked + ` call="NodeUnpublishVolume" pod="shop/web-0" volumeID="` + p.VolumeID() + `" issuer="default" serial="` + serial
			node.Eventually(t, time.Minute, "the revocation", func() bool { return n.Logs.Has(done) })
			if status := renew(t, ca, credential); status != http.StatusUnauthorized {
				t.Errorf("%s: the CA answers the renewal of the revoked certificate with %d", mode, status)
			}
			if status := renew(t, ca, kept); status != http.StatusCreated {
				t.Errorf("%s: the CA answers the renewal of another certificate with %d", mode, status)
			}
			if list := revoked(t, ca); !strings.Contains(list, serial) || strings.Contains(list, kept.leaf().SerialNumber.String()) {
				t.Errorf("%s: the CRL has %s", mode, list)
			}
			if mode == "ra" {
				node.Eventually(t, time.Minute, "the line in the audit log", func() bool {
					return r.replicas[0].logs.Has(logs.Revoked + ` issuer="default" uid="` + p.ID() + `" node="node-1" plugin="step-csi-1" serial="` + serial)
				})
			}
		}
	}
	if _, metrics := r.get(0, "/metrics"); !strings.Contains(metrics, `step_csi_ra_revocations_total{code="OK",issuer="default"} 4`) {
		t.Errorf("metrics:\n%s", metrics)
	}
	// Revoking twice is no error: the first answer can get lost.
	signer, err := stepca.New(stepca.Config{
		URL: ca.URL(), Fingerprint: ca.Fingerprint(), Provisioner: "admin",
		Password: func() ([]byte, error) { return []byte("password"), nil },
	})
	node.Must(t, err)
	defer signer.Close()
	serial := strings.Fields(revoked(t, ca))[0]
	node.Must(t, signer.Revoke(t.Context(), issuer.Revocation{Serial: serial}))
}

// The CA hangs. The unpublish does not wait for the revocation, the plugin still
// stops soon, and it logs the serial numbers that an administrator must revoke by
// hand.
func TestRevocationWhileCAHangs(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	n := newNode(t, ca)
	p := node.Pod{Name: "web-0", Attributes: map[string]string{"revoke-on-delete": "true"}}
	n.Publish(p)
	leaf := read(t, n.Target(p)).leaf()
	asked := make(chan struct{}, 10)
	ca.Intercept(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.ReadAll(r.Body)
			asked <- struct{}{}
			<-r.Context().Done()
		})
	})
	limited, cancel := context.WithTimeout(t.Context(), 10*time.Second) // shorter than the timeout of one call to the CA
	defer cancel()
	_, err := n.NodeUnpublishVolume(limited, &csi.NodeUnpublishVolumeRequest{VolumeId: p.VolumeID(), TargetPath: n.Target(p)})
	node.Must(t, err)
	<-asked
	begin := time.Now()
	n.Stop()
	if took := time.Since(begin); took > 40*time.Second {
		t.Errorf("the plugin took %s to stop", took)
	}
	if !n.Logs.Has(logs.RevokeByHand+leaf.SerialNumber.String()) || !n.Logs.Has(logs.StoppingRevoking) {
		t.Error("the log does not name the certificates to revoke by hand")
	}
}

// After an outage, the plugin retries the revocation.
func TestRevocationAfterAnOutage(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	n := newNode(t, ca)
	p := node.Pod{Name: "web-0", Attributes: map[string]string{"revoke-on-delete": "true"}}
	n.Publish(p)
	serial := read(t, n.Target(p)).leaf().SerialNumber.String()
	revocations := make(chan string, 10)
	ca.Stop()
	n.Unpublish(p)
	time.Sleep(time.Second)
	ca.Intercept(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !strings.HasSuffix(r.URL.Path, "/revoke") {
				next.ServeHTTP(w, r)
				return
			}
			body, _ := io.ReadAll(r.Body)
			revocations <- string(body)
			fmt.Fprint(w, `{"status":"ok"}`)
		})
	})
	node.Must(t, ca.Resume())
	select {
	case body := <-revocations:
		if !strings.Contains(body, serial) {
			t.Errorf("the plugin revoked %s, want %s", body, serial)
		}
	case <-time.After(time.Minute):
		t.Fatal("the plugin did not retry the revocation")
	}
	node.Eventually(t, time.Minute, "the revocation", func() bool { return n.Logs.Has(logs.Revoked) })
}

// An issuer that cannot revoke any certificate is logged once, with the setting to
// change.
func TestRevocationWithoutADatabase(t *testing.T) {
	t.Parallel()
	ca := startCA(t) // this CA has no database
	r := startAuthority(t, ca, 1, "")
	for mode, n := range map[string]*node.Node{"node": newNode(t, ca), "ra": r.newNode()} {
		for i := range 3 {
			p := node.Pod{Name: fmt.Sprintf("web-%d", i), UID: fmt.Sprint(mode, i), Attributes: map[string]string{"revoke-on-delete": "true"}}
			r.admit(p)
			n.Publish(p)
			n.Unpublish(p)
		}
		node.Eventually(t, time.Minute, "all three failed revocations", func() bool { return n.Logs.Count(logs.CannotRevoke) == 1 && n.Logs.Count(logs.NotRevoked) == 2 })
		if said := n.Logs.Count(logs.CannotRevoke); said != 1 {
			t.Errorf("%s: the plugin logged the problem %d times", mode, said)
		}
		if !n.Logs.Has(logs.NoDatabase) {
			t.Errorf("%s: the log does not say what to change", mode)
		}
	}
	if _, metrics := r.get(0, "/metrics"); !strings.Contains(metrics, `step_csi_ra_revocations_total{code="FailedPrecondition",issuer="default"} 3`) {
		t.Errorf("metrics:\n%s", metrics)
	}
}

// theRevocation is a call to Revoke by a client that can reach the authority. It
// starts as a valid call.
type theRevocation struct {
	t       *testing.T
	token   string
	node    string // the node that the proof names
	request *rapb.RevokeRequest
	key     crypto.Signer
}

func (a *theRevocation) prove() {
	sum := sha256.Sum256(ra.Proof(a.request, a.node))
	var err error
	a.request.Signature, err = a.key.Sign(rand.Reader, sum[:], crypto.SHA256)
	node.Must(a.t, err)
}

func (a *theRevocation) call(client rapb.RegistrationAuthorityClient) error {
	if a.request.Signature == nil && len(a.request.Chain) > 0 {
		a.prove()
	}
	ctx, cancel := context.WithTimeout(a.t.Context(), 30*time.Second)
	defer cancel()
	_, err := client.Revoke(metadata.NewOutgoingContext(ctx, metadata.Pairs("authorization", "Bearer "+a.token)), a.request)
	return err
}

// A client without the key of a certificate cannot revoke it: the authority rejects
// the call and does not call the CA.
func TestAttackRevocation(t *testing.T) {
	t.Parallel()
	ca, foreign := startRealCA(t), startCA(t)
	r := startAuthority(t, ca, 1, "")
	n, elsewhere := r.newNode(), newNode(t, foreign)
	p, q, x := node.Pod{Name: "web-0", UID: "p"}, node.Pod{Name: "db-0", UID: "q"}, node.Pod{Name: "web-0", UID: "x"}
	brief := node.Pod{Name: "web-0", UID: "brief", Attributes: map[string]string{"duration": "5m"}}
	for _, p := range []node.Pod{p, q, brief} {
		r.admit(p)
		n.Publish(p)
	}
	elsewhere.Publish(x)
	mine, victim, alien := read(t, n.Target(p)), read(t, n.Target(q)), read(t, elsewhere.Target(x))
	fine := func(t *testing.T) *theRevocation {
		token := jwt(fmt.Sprint("plugin-", r.attacks.Add(1))) // each has its own, because its review is kept
		r.reviews.Bind(token, plugin)
		return &theRevocation{
			t: t, token: token, node: "node-1", key: mine.key,
			request: &rapb.RevokeRequest{Issuer: "default", Chain: ra.Raw(mine.chain), PodUid: "p", Time: time.Now().Unix()},
		}
	}
	client := r.client(t)
	heard := fine(t) // an eavesdropper recorded this valid call
	as := func(pod issuer.Pod) func(*theRevocation) {
		return func(a *theRevocation) { r.reviews.Set(a.token, reviews.Bound(pod)) }
	}
	for _, test := range []struct {
		name    string
		change  func(*theRevocation)
		code    codes.Code
		message string
	}{
		{"no token", func(a *theRevocation) { a.token = "" }, codes.Unauthenticated, "the caller's token"},
		{"a forged token", func(a *theRevocation) { a.token = jwt("plugin-forged") }, codes.Unauthenticated, "the caller's token"},
		{"an expired token", func(a *theRevocation) { r.reviews.Set(a.token, statusExpired) }, codes.Unauthenticated, "has expired"},
		{"a pod calls by itself", func(a *theRevocation) { a.token = jwt("p") }, codes.PermissionDenied, "only node plugins"},
		{"another service account", as(issuer.Pod{Namespace: "step-ca", Name: "x", UID: "u", ServiceAccount: "default", Node: "node-1"}), codes.PermissionDenied, "only node plugins"},
		{"the foreign key", func(a *theRevocation) { a.key = victim.key }, codes.PermissionDenied, "no proof"},
		{"the victim's certificate", func(a *theRevocation) { a.request.Chain = ra.Raw(victim.chain) }, codes.PermissionDenied, "no proof"},
		{"the victim's certificate, after the proof", func(a *theRevocation) {
			a.prove()
			a.request.Chain = ra.Raw(victim.chain)
		}, codes.PermissionDenied, "no proof"},
		{"the victim's certificate as an intermediate", func(a *theRevocation) {
			a.request.Chain = append(ra.Raw(mine.chain[:1]), victim.leaf().Raw)
		}, codes.PermissionDenied, "not a valid certificate of the issuer"},
		{"the intermediate", func(a *theRevocation) { a.request.Chain = ra.Raw(mine.chain[1:]) }, codes.PermissionDenied, "not a valid certificate of the issuer"},
		{"the root", func(a *theRevocation) { a.request.Chain = ra.Raw([]*x509.Certificate{ca.Root()}) }, codes.PermissionDenied, "not a valid certificate of the issuer"},
		{"an RSA key of 200,000 bits", func(a *theRevocation) {
			a.request.Chain, a.request.Signature = [][]byte{hugeKey(t, mine.leaf())}, make([]byte, 25_000)
		}, codes.InvalidArgument, "an RSA key of 200000 bits"},
		{"an RSA key of 200,000 bits in an intermediate", func(a *theRevocation) {
			a.request.Chain = append(a.request.Chain, hugeKey(t, mine.leaf()))
		}, codes.InvalidArgument, "an RSA key of 200000 bits"},
		{"a certificate of another CA", func(a *theRevocation) { a.key, a.request.Chain = alien.key, ra.Raw(alien.chain) }, codes.PermissionDenied, "no chain to a root"},
		{"one's own, with the victim's serial number", func(a *theRevocation) {
			a.request.Chain, a.key = selfMade(t, victim.leaf())
		}, codes.PermissionDenied, "no chain to a root"},
		{"without intermediates", func(a *theRevocation) { a.request.Chain = a.request.Chain[:1] }, codes.PermissionDenied, "no chain to a root"},
		{"no signature", func(a *theRevocation) { a.request.Signature = []byte{} }, codes.PermissionDenied, "no proof"},
		{"a proof for another node", func(a *theRevocation) { a.node = "node-2" }, codes.PermissionDenied, "no proof"},
		{"a proof taken to another node", as(issuer.Pod{Namespace: "step-ca", Name: "step-csi-2", UID: "u", ServiceAccount: "step-csi", Node: "node-2"}), codes.PermissionDenied, "no proof"},
		{"a proof of yesterday", func(a *theRevocation) { a.request.Time -= 24 * 3600 }, codes.PermissionDenied, "clocks"},
		{"a proof of tomorrow", func(a *theRevocation) { a.request.Time += 24 * 3600 }, codes.PermissionDenied, "clocks"},
		{"a proof of the end of time", func(a *theRevocation) { a.request.Time = 1<<63 - 1 }, codes.PermissionDenied, "clocks"},
		{"another time than that of the proof", func(a *theRevocation) {
			a.prove()
			a.request.Time++
		}, codes.PermissionDenied, "no proof"},
		{"another pod than that of the proof", func(a *theRevocation) {
			a.prove()
			a.request.PodUid = "q"
		}, codes.PermissionDenied, "no proof"},
		{"an unknown issuer", func(a *theRevocation) { a.request.Issuer = "other" }, codes.NotFound, "no such issuer"},
		{"no certificate", func(a *theRevocation) { a.request.Chain = nil }, codes.InvalidArgument, "0 certificates"},
		{"rubbish", func(a *theRevocation) { a.request.Chain = [][]byte{[]byte("certificate")} }, codes.InvalidArgument, "malformed"},
		{"nothing as a certificate", func(a *theRevocation) { a.request.Chain = [][]byte{nil} }, codes.InvalidArgument, "malformed"},
		{"more after the certificate", func(a *theRevocation) { a.request.Chain[0] = append(bytes.Clone(a.request.Chain[0]), 0) }, codes.InvalidArgument, "malformed"},
		{"a hundred certificates", func(a *theRevocation) {
			for range 99 {
				a.request.Chain = append(a.request.Chain, []byte{0})
			}
		}, codes.InvalidArgument, "101 certificates"},
	} {
		a := fine(t)
		test.change(a)
		if err := a.call(client); err != nil {
			expect(t, err, test.code, test.message)
		} else {
			t.Errorf("%s: the authority accepted the call", test.name)
		}
		if t.Failed() {
			t.Fatal(test.name)
		}
	}
	if list := revoked(t, ca); list != "" {
		t.Errorf("the CRL has %s", list)
	}
	for _, f := range []files{mine, victim} {
		if status := renew(t, ca, f); status != http.StatusCreated {
			t.Errorf("the CA answers a renewal with %d", status)
		}
	}
	// The valid call succeeds, and replaying it changes nothing.
	node.Must(t, heard.call(client))
	node.Must(t, heard.call(client))
	if list, want := revoked(t, ca), mine.leaf().SerialNumber.String(); list != want {
		t.Errorf("the CRL has %s, want %s", list, want)
	}
	for _, p := range []node.Pod{p, q, brief} {
		n.Unpublish(p)
	}
	elsewhere.Unpublish(x)
	r.stop(0) // its log is complete
	if log := r.replicas[0].logs; log.Count(logs.RevocationRefused) != 25 || log.Count(logs.Revoked) != 2 {
		t.Errorf("the audit log has %d refusals:\n%s", log.Count(logs.RevocationRefused), log)
	}
}

// selfMade returns a self-signed certificate with the serial number and the names of
// another.
func selfMade(t *testing.T, like *x509.Certificate) ([][]byte, crypto.Signer) {
	t.Helper()
	key, err := issuer.ECDSAP256.Generate()
	node.Must(t, err)
	template := &x509.Certificate{
		SerialNumber: like.SerialNumber, Subject: like.Subject, DNSNames: like.DNSNames, NotBefore: like.NotBefore, NotAfter: like.NotAfter,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key.Signer)
	node.Must(t, err)
	return [][]byte{der}, key.Signer
}

// hugeKey returns a certificate like another, with an RSA key that takes seconds to
// verify a signature with.
func hugeKey(t *testing.T, like *x509.Certificate) []byte {
	t.Helper()
	modulus := new(big.Int).Lsh(big.NewInt(1), 199_999)
	modulus.SetBit(modulus, 0, 1)
	signer, err := issuer.ECDSAP256.Generate()
	node.Must(t, err)
	template := &x509.Certificate{
		SerialNumber: like.SerialNumber, Subject: like.Subject, DNSNames: like.DNSNames, NotBefore: like.NotBefore, NotAfter: like.NotAfter,
		KeyUsage: like.KeyUsage, ExtKeyUsage: like.ExtKeyUsage,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &rsa.PublicKey{N: modulus, E: 65537}, signer.Signer)
	node.Must(t, err)
	return der
}

// The authority rejects expired certificates, which need no revocation.
func TestAttackRevokingExpiredCertificate(t *testing.T) {
	t.Parallel()
	r := startAuthority(t, startCA(t), 1, "")
	n := r.newNode()
	p := node.Pod{Name: "web-0", Attributes: map[string]string{"duration": "10s"}}
	r.admit(p)
	n.Publish(p)
	f := read(t, n.Target(p))
	n.Unpublish(p)
	time.Sleep(time.Until(f.leaf().NotAfter.Add(time.Second)))
	a := &theRevocation{t: t, token: jwt("plugin"), node: "node-1", key: f.key, request: &rapb.RevokeRequest{
		Issuer: "default", Chain: ra.Raw(f.chain), Time: time.Now().Unix(),
	}}
	expect(t, a.call(r.client(t)), codes.PermissionDenied, "expired")
}
