package ra

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.step.sm/crypto/minica"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
	"github.com/flexstack/step-csi/issuer/ra/rapb"
	"github.com/flexstack/step-csi/issuer/trust"
	"github.com/flexstack/step-csi/test/loopback"
)

const passwordReason = `issuer default, which signs the registration authority's own certificate: CA https://ca:9000: ` +
	`the password does not open the key of provisioner "admin"`

func generate(t *testing.T) issuer.PrivateKey {
	t.Helper()
	key, err := issuer.ECDSAP256.Generate()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func notReadyCertificate(t *testing.T, reason string) *tls.Certificate {
	t.Helper()
	c, err := NotReadyCertificate(reason, generate(t).Signer)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// The reason arrives on one line of printable text, of a bounded length, whatever it is.
func TestReasonIsBounded(t *testing.T) {
	for _, test := range []struct{ reason, want string }{
		{passwordReason, passwordReason},
		{"a\nb\r\n\tc\x00\x1b[31md\u202ee…", "a b c [31md e..."},
		{"", ""},
		{strings.Repeat("x", maxReason), strings.Repeat("x", maxReason)},
		{strings.Repeat("x", 1<<20), strings.Repeat("x", maxReason-3) + "..."},
		{strings.Repeat("\n", 1<<20) + "x", ""},
	} {
		if got, found := reasonOf(notReadyCertificate(t, test.reason).Leaf); got != test.want || !found {
			t.Errorf("%.50q: got %.50q, %t", test.reason, got, found)
		}
	}
}

// A peer can write anything into its certificate.
func TestForgedReasons(t *testing.T) {
	ia5 := func(text string) []byte { return append([]byte{asn1.TagIA5String, byte(len(text))}, text...) }
	for name, test := range map[string]struct {
		subject string
		value   []byte
		want    string
		found   bool
	}{
		"control characters": {notReadyName, ia5("a\nb\x1b]0;c\x07d"), "a b ]0;c d", true},
		"not a string":       {notReadyName, []byte{asn1.TagInteger, 1, 1}, "", false},
		"UTF-8":              {notReadyName, append([]byte{asn1.TagUTF8String, 6}, "a\u202eb\n"...), "a b", true},
		"more after it":      {notReadyName, append(ia5("abc"), 0), "", false},
		"cut off":            {notReadyName, []byte{asn1.TagIA5String, 100, 'a'}, "", false},
		"empty":              {notReadyName, nil, "", false},
		"another subject":    {"ra.example.com", ia5("abc"), "", false},
	} {
		key := generate(t)
		template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: test.subject}, ExtraExtensions: []pkix.Extension{{Id: commentID(), Value: test.value}}}
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key.Signer)
		if err != nil {
			t.Fatal(err)
		}
		forged, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		if got, found := reasonOf(forged); got != test.want || found != test.found {
			t.Errorf("%s: got %q, %t", name, got, found)
		}
	}
	huge := notReadyCertificate(t, "x").Leaf
	value, err := asn1.MarshalWithParams(strings.Repeat("\x01y", 20<<10), "ia5")
	if err != nil {
		t.Fatal(err)
	}
	huge.Extensions = []pkix.Extension{{Id: commentID(), Value: value}}
	if got, _ := reasonOf(huge); len(got) > maxReason || strings.ContainsRune(got, 1) {
		t.Errorf("%d bytes", len(got))
	}
}

// replica is a registration authority that signs for everyone.
type replica struct {
	rapb.UnimplementedRegistrationAuthorityServer
	ca          *minica.CA
	certificate atomic.Pointer[tls.Certificate]
	calls       atomic.Int64
}

func (r *replica) Sign(_ context.Context, req *rapb.SignRequest) (*rapb.SignResponse, error) {
	r.calls.Add(1)
	csr, err := x509.ParseCertificateRequest(req.GetCsr())
	if err != nil {
		return nil, err
	}
	leaf, err := r.ca.SignCSR(csr)
	if err != nil {
		return nil, err
	}
	return &rapb.SignResponse{Chain: Raw([]*x509.Certificate{leaf, r.ca.Intermediate}), Roots: Raw([]*x509.Certificate{r.ca.Root})}, nil
}

func (r *replica) Roots(context.Context, *rapb.RootsRequest) (*rapb.RootsResponse, error) {
	r.calls.Add(1)
	roots := Raw([]*x509.Certificate{r.ca.Root})
	return &rapb.RootsResponse{Roots: roots, AuthorityRoots: roots}, nil
}

// becomeReady gives the replica a certificate of the CA.
func (r *replica) becomeReady(t *testing.T) {
	t.Helper()
	key := generate(t)
	csr, err := issuer.NewCSR(issuer.Request{DNSNames: []names.DNSName{names.Must(names.ParseDNSName("ra.example.com"))}}, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := r.ca.SignCSR(csr)
	if err != nil {
		t.Fatal(err)
	}
	r.certificate.Store(&tls.Certificate{Certificate: Raw([]*x509.Certificate{leaf, r.ca.Intermediate, r.ca.Root}), PrivateKey: key.Signer})
}

// startReplicas starts replicas on 127.0.0.1, 127.0.0.2 and so on, which are not ready for
// these reasons.
func startReplicas(t *testing.T, reasons ...string) (all []*replica, port string) {
	t.Helper()
	ca, err := minica.New()
	if err != nil {
		t.Fatal(err)
	}
	listeners := listenAll(t, len(reasons))
	_, port, _ = net.SplitHostPort(listeners[0].Addr().String())
	for i, reason := range reasons {
		r := &replica{ca: ca}
		r.certificate.Store(notReadyCertificate(t, reason))
		server := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
			MinVersion:     tls.VersionTLS13,
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return r.certificate.Load(), nil },
		})))
		rapb.RegisterRegistrationAuthorityServer(server, r)
		var serving sync.WaitGroup
		serving.Go(func() { _ = server.Serve(listeners[i]) })
		t.Cleanup(func() { server.Stop(); serving.Wait() })
		all = append(all, r)
	}
	return all, port
}

// listenAll listens on one port of several addresses.
func listenAll(t *testing.T, n int) []net.Listener {
	t.Helper()
	for range 100 {
		first, err := loopback.Listen("127.0.0.1")
		if err != nil {
			t.Fatal(err)
		}
		all := []net.Listener{first}
		_, port, _ := net.SplitHostPort(first.Addr().String())
		for i := 1; i < n; i++ {
			other, err := net.Listen("tcp", net.JoinHostPort(address(i), port))
			if err != nil {
				break
			}
			all = append(all, other)
		}
		if len(all) == n {
			return all
		}
		for _, l := range all {
			l.Close()
		}
	}
	t.Fatal("no port is free on all addresses")
	return nil
}

func address(i int) string { return net.IPv4(127, 0, 0, byte(i+1)).String() }

// signerOf returns a Signer for which ra.example.com has the addresses of n replicas.
func signerOf(t *testing.T, ca *minica.CA, port string, n int) *Signer {
	t.Helper()
	return signerWith(t, "https://ra.example.com:"+port, trust.Fingerprint(ca.Root), func(context.Context, string) (addresses []string, err error) {
		for i := range n {
			addresses = append(addresses, address(i))
		}
		return addresses, nil
	})
}

func signerWith(t *testing.T, url, fingerprint string, lookup lookupHost) *Signer {
	t.Helper()
	s, err := New(Config{
		URL: url, Fingerprint: fingerprint, Issuer: "default",
		Token: func() ([]byte, error) { return []byte("a.b.c"), nil },
		// A call that waits for it fails the test: the cause must come earlier.
		Timeout: time.Hour,
	})
	if err != nil {
		t.Fatal(err)
	}
	s.connection.Close()
	if s.connection, err = s.dial(lookup); err != nil {
		t.Fatal(err)
	}
	s.client = rapb.NewRegistrationAuthorityClient(s.connection)
	t.Cleanup(s.Close)
	return s
}

// try signs for a pod. A call that takes minutes would have waited for its deadline.
func try(t *testing.T, s *Signer) error {
	t.Helper()
	csr, err := issuer.NewCSR(issuer.Request{}, generate(t))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	_, err = s.Sign(ctx, issuer.SigningRequest{Applicant: issuer.Applicant{Token: issuer.NewToken("a.b.c", time.Now().Add(time.Hour))}, CSR: csr})
	if ctx.Err() != nil {
		t.Fatalf("the call did not end: %v", err)
	}
	return err
}

// checkReason checks the error of a call to replicas that are not ready.
func checkReason(t *testing.T, err error, reason string) {
	t.Helper()
	if err == nil || issuer.OutcomeOf(err) != issuer.Unavailable || !errors.Is(err, issuer.ErrNotYet) {
		t.Errorf("outcome %v: %v", issuer.OutcomeOf(err), err)
		return
	}
	text := err.Error()
	if !strings.HasPrefix(text, "registration authority https://ra.example.com:") || !strings.HasSuffix(text, ": not ready; it says (unverified): "+reason) || strings.Contains(text, "unavailable") {
		t.Errorf("got %q", text)
	}
}

// If no replica is ready, calls end early and say why. No replica gets a call, and so no
// token. Once a replica is ready, calls succeed.
func TestNoReplicaIsReady(t *testing.T) {
	t.Parallel()
	all, port := startReplicas(t, passwordReason, passwordReason)
	s := signerOf(t, all[0].ca, port, 2)
	for range 3 {
		checkReason(t, try(t, s), passwordReason)
	}
	checkReason(t, s.Connect(t.Context()), passwordReason)
	const other = "issuer default: connection refused"
	for _, r := range all {
		r.certificate.Store(notReadyCertificate(t, other))
	}
	eventually(t, "the new reason", func() bool { err := try(t, s); return err != nil && strings.HasSuffix(err.Error(), other) })
	for i, r := range all {
		if n := r.calls.Load(); n > 0 {
			t.Errorf("replica %d received %d calls", i, n)
		}
	}
	all[1].becomeReady(t)
	eventually(t, "a certificate", func() bool { return try(t, s) == nil })
	for range 10 {
		if err := try(t, s); err != nil {
			t.Error(err)
		}
	}
	if n := all[0].calls.Load(); n > 0 {
		t.Errorf("the replica that is not ready received %d calls", n)
	}
}

// If one replica is ready, all calls go there, also the first call of a connection.
func TestOneReplicaIsReady(t *testing.T) {
	t.Parallel()
	all, port := startReplicas(t, passwordReason, passwordReason, passwordReason)
	all[2].becomeReady(t)
	for range 30 {
		s := signerOf(t, all[0].ca, port, 3)
		for range 2 {
			if err := try(t, s); err != nil {
				t.Fatal(err)
			}
		}
		s.Close()
	}
}

// One replica is not ready and says why, and the other one is not there: the reason counts.
func TestReasonBeatsRefusedConnection(t *testing.T) {
	t.Parallel()
	all, port := startReplicas(t, passwordReason)
	s := signerOf(t, all[0].ca, port, 2)
	for range 4 { // gRPC takes the errors of the replicas in turn
		checkReason(t, try(t, s), passwordReason)
	}
}

// Without a replica, the error says what to look at, and does not take the time-out.
func TestNoReplicaExists(t *testing.T) {
	t.Parallel()
	listener, err := loopback.Listen("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	listener.Close()
	missing := func(_ context.Context, host string) ([]string, error) {
		return nil, &net.DNSError{Err: "no such host", Name: host, Server: "10.96.0.10:53", IsNotFound: true}
	}
	refusing := func(context.Context, string) ([]string, error) { return []string{"127.0.0.1"}, nil }
	fingerprint := strings.Repeat("84a0", 16)
	for name, test := range map[string]struct {
		host   string
		lookup lookupHost
		want   string
	}{
		"no pod":        {"step-csi-ra.pki.svc.cluster.local", missing, "no pod of the registration authority exists, or the URL is wrong: kubectl -n pki get pods"},
		"no host":       {"ra.example.com", missing, "no such host (is the host of the URL the registration authority's?)"},
		"a pod crashes": {"step-csi-ra.pki.svc.cluster.local", refusing, "do the pods of the registration authority run? kubectl -n pki get pods"},
	} {
		s := signerWith(t, "https://"+test.host+":"+port, fingerprint, test.lookup)
		for call, err := range map[string]error{"sign": try(t, s), "connect": s.Connect(t.Context())} {
			if err == nil || issuer.OutcomeOf(err) != issuer.Unavailable || !errors.Is(err, issuer.ErrNotYet) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%s: %s: %v", name, call, err)
			}
		}
		s.Close()
	}
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !condition(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("there was no %s in time", what)
		}
	}
}
