package integration

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"math"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	authentication "k8s.io/api/authentication/v1"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/ra/rapb"
	"github.com/flexstack/step-csi/test/node"
	"github.com/flexstack/step-csi/test/reviews"
)

// attack is a call to Sign by a client that can reach the registration authority. It
// starts as a valid call.
type attack struct {
	r       *authorities
	t       *testing.T
	token   string // the caller's; each attack has its own, because its review is kept
	headers metadata.MD
	request *rapb.SignRequest
	pod     issuer.Pod
	names   x509.CertificateRequest
	csr     func(names *x509.CertificateRequest) []byte
}

func newAttack(t *testing.T, r *authorities) *attack {
	id, _ := url.Parse("spiffe://cluster.local/ns/shop/sa/web")
	a := &attack{
		r: r, t: t, token: jwt(fmt.Sprint("plugin-", r.attacks.Add(1))),
		request: &rapb.SignRequest{Issuer: "default", DurationSeconds: 3600, PodToken: jwt("pod")},
		pod:     issuer.Pod{Namespace: "shop", Name: "web-0", UID: "uid-web-0", ServiceAccount: "web", Node: "node-1"},
		names: x509.CertificateRequest{
			Subject: pkix.Name{CommonName: "web.shop"}, DNSNames: []string{"web.shop", "web.shop.svc"}, URIs: []*url.URL{id},
		},
		csr: func(names *x509.CertificateRequest) []byte { return csrOf(t, names) },
	}
	a.request.Pod = wire(a.pod)
	a.headers = metadata.Pairs("authorization", "Bearer "+a.token)
	r.reviews.Bind(a.token, plugin)
	r.reviews.Bind(jwt("pod"), a.pod)
	return a
}

func wire(p issuer.Pod) *rapb.Pod {
	return &rapb.Pod{Namespace: p.Namespace, Name: p.Name, Uid: p.UID, ServiceAccount: p.ServiceAccount, Node: p.Node}
}

// csrOf also creates CSRs that issuer.NewCSR cannot create.
func csrOf(t *testing.T, template *x509.CertificateRequest) []byte {
	key, err := issuer.ECDSAP256.Generate()
	node.Must(t, err)
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	node.Must(t, err)
	return der
}

// as changes the identity of the pod: in the API server's review of its token, and
// in the request.
func (a *attack) as(pod issuer.Pod) {
	a.r.reviews.Bind(jwt("pod"), pod)
	a.request.Pod = wire(pod)
}

func (a *attack) call(client rapb.RegistrationAuthorityClient) error {
	if a.request.Csr == nil && a.csr != nil {
		a.request.Csr = a.csr(&a.names)
	}
	ctx, cancel := context.WithTimeout(a.t.Context(), 30*time.Second)
	defer cancel()
	_, err := client.Sign(metadata.NewOutgoingContext(ctx, a.headers), a.request)
	return err
}

func (r *authorities) client(t testing.TB) rapb.RegistrationAuthorityClient {
	t.Helper()
	return r.clientFrom(t, "127.0.0.1")
}

// clientFrom returns a client with the address.
func (r *authorities) clientFrom(t testing.TB, address string) rapb.RegistrationAuthorityClient {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(r.ca.Root())
	dialer := &net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(address), 0))}
	connection, err := grpc.NewClient(net.JoinHostPort("127.0.0.1", r.port), grpc.WithTransportCredentials(
		credentials.NewTLS(&tls.Config{RootCAs: roots, ServerName: authorityHost})),
		grpc.WithContextDialer(func(ctx context.Context, to string) (net.Conn, error) { return dialer.DialContext(ctx, "tcp", to) }))
	node.Must(t, err)
	t.Cleanup(func() { connection.Close() })
	return rapb.NewRegistrationAuthorityClient(connection)
}

func rejected(reason string) authentication.TokenReviewStatus {
	return authentication.TokenReviewStatus{Error: "[invalid bearer token, " + reason + "]"}
}

// changed returns the API server's review of a pod's token, with one change.
func changed(pod issuer.Pod, change func(*authentication.TokenReviewStatus)) authentication.TokenReviewStatus {
	status := reviews.Bound(pod)
	change(&status)
	return status
}

// TestAttackAuthority sends calls to the registration authority that try to obtain a
// certificate for someone else. Each call must fail with the expected code, and the
// CA must receive no signing request.
func TestAttackAuthority(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	r := startAuthority(t, ca, 1, "  limits: {pod: {rate: 1000, burst: 1000}}\n")
	client := r.client(t)
	if err := newAttack(t, r).call(client); err != nil {
		t.Fatalf("the valid call failed: %v", err)
	}
	web := newAttack(t, r).pod
	in := func(namespace string) func(*attack) {
		return func(a *attack) {
			pod := web
			pod.Namespace = namespace
			a.as(pod)
		}
	}
	dns := func(names ...string) func(*attack) {
		return func(a *attack) { a.names.DNSNames = append(a.names.DNSNames, names...) }
	}
	uri := func(text string) func(*attack) {
		return func(a *attack) {
			u, err := url.Parse(text)
			node.Must(a.t, err)
			a.names.URIs = append(a.names.URIs, u)
		}
	}
	caller := func(status authentication.TokenReviewStatus) func(*attack) {
		return func(a *attack) { a.r.reviews.Set(a.token, status) }
	}
	token := func(status authentication.TokenReviewStatus) func(*attack) {
		return func(a *attack) { a.r.reviews.Set(jwt("pod"), status) }
	}
	claim := func(change func(*rapb.Pod)) func(*attack) { return func(a *attack) { change(a.request.Pod) } }
	raw := func(template *x509.CertificateRequest) func(*attack) {
		return func(a *attack) { a.request.Csr = csrOf(a.t, template) }
	}
	san := asn1.ObjectIdentifier{2, 5, 29, 17}
	marshal := func(value any) []byte {
		der, err := asn1.Marshal(value)
		node.Must(t, err)
		return der
	}
	dnsName := func(name string) asn1.RawValue { return asn1.RawValue{Class: 2, Tag: 2, Bytes: []byte(name)} }
	otherName := asn1.RawValue{Class: 2, Tag: 0, IsCompound: true, Bytes: []byte{6, 3, 42, 3, 4, 0xa0, 3, 12, 1, 'x'}}

	for _, test := range []struct {
		name    string
		mount   func(*attack)
		code    codes.Code
		message string
	}{
		// The caller's token.
		{"caller without a token", func(a *attack) { a.headers = nil }, codes.Unauthenticated, "the caller's token"},
		{"caller with two tokens", func(a *attack) { a.headers.Append("authorization", "Bearer "+jwt("pod")) }, codes.Unauthenticated, "the caller's token"},
		{"caller with a password", func(a *attack) { a.headers.Set("authorization", "Basic YWRtaW46YWRtaW4=") }, codes.Unauthenticated, "not a bearer token"},
		{"caller with rubbish", func(a *attack) { a.headers.Set("authorization", "Bearer x") }, codes.Unauthenticated, "not a JSON Web Token"},
		{"caller with a forged token", func(a *attack) { a.headers.Set("authorization", "Bearer "+jwt("plugin-forged")) }, codes.Unauthenticated, "the caller's token"},
		{"caller with an expired token", caller(rejected("service account token has expired")), codes.Unauthenticated, "has expired"},
		{"caller with a token for another audience", caller(changed(plugin, func(s *authentication.TokenReviewStatus) { s.Audiences = []string{"https://kubernetes.default.svc"} })), codes.Unauthenticated, "audience"},
		{"caller with a token for no audience", caller(changed(plugin, func(s *authentication.TokenReviewStatus) { s.Audiences = nil })), codes.Unauthenticated, "audience"},
		{"caller with a token of no pod", caller(changed(plugin, func(s *authentication.TokenReviewStatus) { s.User.Extra = nil })), codes.Unauthenticated, "not bound to a pod"},
		{"caller with a token of no node", caller(changed(plugin, func(s *authentication.TokenReviewStatus) {
			delete(s.User.Extra, "authentication.kubernetes.io/node-name")
		})), codes.Unauthenticated, "not bound to a node"},
		{"caller who is a user", caller(changed(plugin, func(s *authentication.TokenReviewStatus) { s.User.Username = "admin" })), codes.Unauthenticated, "service account"},
		{"a pod calls by itself", func(a *attack) { a.headers.Set("authorization", "Bearer "+jwt("pod")) }, codes.PermissionDenied, "only node plugins"},
		{"a plugin of another namespace", caller(reviews.Bound(issuer.Pod{Namespace: "shop", Name: "step-csi-1", UID: "u", ServiceAccount: "step-csi", Node: "node-1"})), codes.PermissionDenied, "only node plugins"},
		{"another service account of the plugin's namespace", caller(reviews.Bound(issuer.Pod{Namespace: "step-ca", Name: "x", UID: "u", ServiceAccount: "default", Node: "node-1"})), codes.PermissionDenied, "only node plugins"},
		{"a namespace with a slash in it", caller(reviews.Bound(issuer.Pod{Namespace: "step-ca/step-csi", Name: "x", UID: "u", Node: "node-1"})), codes.PermissionDenied, "only node plugins"},
		{"the authority itself", caller(reviews.Bound(issuer.Pod{Namespace: "step-ca", Name: "ra-1", UID: "u", ServiceAccount: "step-csi-ra", Node: "node-1"})), codes.PermissionDenied, "only node plugins"},
		// The pod's token.
		{"no token of the pod", func(a *attack) { a.request.PodToken = "" }, codes.Unauthenticated, "no valid token of the pod"},
		{"rubbish as the pod's token", func(a *attack) { a.request.PodToken = "a.b.c.d" }, codes.Unauthenticated, "no valid token of the pod"},
		{"a pod's token with a newline", func(a *attack) { a.request.PodToken = jwt("pod") + "\n" }, codes.Unauthenticated, "no valid token of the pod"},
		{"an endless token", func(a *attack) { a.request.PodToken = "header." + strings.Repeat("x", 20<<10) + ".signature" }, codes.Unauthenticated, "no valid token of the pod"},
		{"a forged token of the pod", func(a *attack) { a.request.PodToken = jwt("forged") }, codes.Unauthenticated, "no valid token of the pod"},
		{"an expired token of the pod", token(rejected("service account token has expired")), codes.Unauthenticated, "has expired"},
		{"a token of a pod that is gone", token(rejected("service account token has been invalidated")), codes.Unauthenticated, "invalidated"},
		{"the pod's token for another audience", token(changed(web, func(s *authentication.TokenReviewStatus) { s.Audiences = []string{"vault"} })), codes.Unauthenticated, "audience"},
		{"a token of no pod", token(changed(web, func(s *authentication.TokenReviewStatus) {
			delete(s.User.Extra, "authentication.kubernetes.io/pod-uid")
		})), codes.Unauthenticated, "not bound to a pod"},
		{"a token of two pods", token(changed(web, func(s *authentication.TokenReviewStatus) {
			s.User.Extra["authentication.kubernetes.io/pod-name"] = authentication.ExtraValue{"web-0", "db-0"}
		})), codes.Unauthenticated, "not bound to a pod"},
		{"a token of no node", token(changed(web, func(s *authentication.TokenReviewStatus) {
			delete(s.User.Extra, "authentication.kubernetes.io/node-name")
		})), codes.Unauthenticated, "not bound to a node"},
		{"a user's token", token(changed(web, func(s *authentication.TokenReviewStatus) { s.User.Username = "system:node:node-1" })), codes.Unauthenticated, "service account"},
		{"a pod of another node", func(a *attack) { pod := web; pod.Node = "node-2"; a.as(pod) }, codes.PermissionDenied, "another node"},
		{"a pod's token replayed on another node", caller(reviews.Bound(issuer.Pod{Namespace: "step-ca", Name: "step-csi-2", UID: "u", ServiceAccount: "step-csi", Node: "node-2"})), codes.PermissionDenied, "another node"},
		{"the plugin's token as the pod's", func(a *attack) { a.request.PodToken = a.token; a.request.Pod = wire(plugin) }, codes.PermissionDenied, "the node plugin itself"},
		{"another namespace is claimed", claim(func(p *rapb.Pod) { p.Namespace = "prod" }), codes.PermissionDenied, "not that of the pod"},
		{"another name is claimed", claim(func(p *rapb.Pod) { p.Name = "db-0" }), codes.PermissionDenied, "not that of the pod"},
		{"another UID is claimed", claim(func(p *rapb.Pod) { p.Uid = "uid-db-0" }), codes.PermissionDenied, "not that of the pod"},
		{"another service account is claimed", claim(func(p *rapb.Pod) { p.ServiceAccount = "admin" }), codes.PermissionDenied, "not that of the pod"},
		{"another node is claimed", claim(func(p *rapb.Pod) { p.Node = "node-2" }), codes.PermissionDenied, "not that of the pod"},
		{"no pod is claimed", func(a *attack) { a.request.Pod = nil }, codes.PermissionDenied, "not that of the pod"},
		{"a hostile namespace", in("shop.svc"), codes.PermissionDenied, "namespace"},
		// The requested names.
		{"a name of another namespace", dns("db.prod.svc"), codes.PermissionDenied, "db.prod.svc is not allowed"},
		{"in upper case", dns("DB.PROD.SVC"), codes.InvalidArgument, "DB.PROD.SVC"},
		{"its own in upper case", dns("WEB.shop.svc"), codes.InvalidArgument, "WEB.shop.svc"},
		{"with a dot at the end", dns("web.shop.svc."), codes.InvalidArgument, "web.shop.svc."},
		{"a wildcard for all", dns("*.svc.cluster.local"), codes.PermissionDenied, "*.svc.cluster.local"},
		{"a bare wildcard", dns("*"), codes.InvalidArgument, "*"},
		{"an inner wildcard", dns("web.*.svc"), codes.InvalidArgument, "web.*.svc"},
		{"punycode that is none", dns("xn--a-.shop.svc"), codes.InvalidArgument, "xn--a-"},
		{"punycode of ASCII", dns("xn--shop-.shop.svc"), codes.InvalidArgument, "xn--shop-"},
		{"a short name", dns("postgres"), codes.PermissionDenied, "postgres is not allowed"},
		{"an address as a name", dns("10.0.0.1"), codes.InvalidArgument, "10.0.0.1"},
		{"101 names", dns(strings.Fields(strings.Repeat("x.shop.svc ", 101))...), codes.PermissionDenied, "names are too many"},
		{"an IP address", func(a *attack) { a.names.IPAddresses = []net.IP{net.IPv4(10, 0, 0, 1)} }, codes.PermissionDenied, "10.0.0.1 is not allowed"},
		{"an e-mail address", func(a *attack) { a.names.EmailAddresses = []string{"root@example.com"} }, codes.PermissionDenied, "root@example.com"},
		{"a foreign SPIFFE ID", uri("spiffe://cluster.local/ns/prod/sa/db"), codes.PermissionDenied, "/ns/prod/sa/db is not allowed"},
		{"of another trust domain", uri("spiffe://example.org/ns/shop/sa/web"), codes.PermissionDenied, "example.org"},
		{"with dots in the path", uri("spiffe://cluster.local/ns/prod/../shop/sa/web"), codes.InvalidArgument, "dot segment"},
		{"with an escaped slash", uri("spiffe://cluster.local/ns/shop/sa/web%2f"), codes.InvalidArgument, "percent"},
		{"with a query", uri("spiffe://cluster.local/ns/shop/sa/web?x"), codes.InvalidArgument, "is not a SPIFFE ID"},
		{"a common name of a user", func(a *attack) { a.names.Subject.CommonName = "postgres" }, codes.PermissionDenied, "common name postgres"},
		{"a common name of a node", func(a *attack) { a.names.Subject.CommonName = "system:node:node-1" }, codes.PermissionDenied, "common name"},
		{"a common name with a NUL", func(a *attack) { a.names.Subject.CommonName = "web.shop\x00.example.com" }, codes.InvalidArgument, "common name"},
		{"the authority's name", func(a *attack) { in("test")(a); dns(authorityHost)(a) }, codes.PermissionDenied, "reserved"},
		{"a wildcard for the authority's name", func(a *attack) { in("test")(a); dns("*.test")(a) }, codes.InvalidArgument, "at least two labels"},
		{"a common name of the authority in capitals", func(a *attack) { a.names.Subject.CommonName = strings.ToUpper(authorityHost) }, codes.PermissionDenied, "reserved"},
		{"a common name of a person", func(a *attack) { a.names.Subject.CommonName = "John Doe" }, codes.PermissionDenied, "common name John Doe is not allowed"},
		{"the authority's common name", func(a *attack) { a.names.Subject.CommonName = authorityHost }, codes.PermissionDenied, "reserved"},
		{"no names", func(a *attack) { a.names = x509.CertificateRequest{} }, codes.PermissionDenied, "no subject alternative name"},
		{"a common name alone", func(a *attack) {
			a.names = x509.CertificateRequest{Subject: pkix.Name{CommonName: a.pod.UID}}
		}, codes.PermissionDenied, "no subject alternative name"},
		{"a common name that is not among the names", func(a *attack) { a.names.Subject.CommonName = "db.shop" }, codes.PermissionDenied, "common name db.shop is not allowed"},
		{"the API server", func(a *attack) { in("default")(a); dns("kubernetes.default.svc")(a) }, codes.PermissionDenied, "reserved"},
		{"the API server's short form", func(a *attack) { in("default")(a); dns("kubernetes.default")(a) }, codes.PermissionDenied, "reserved"},
		{"a wildcard for the API server", func(a *attack) { in("default")(a); dns("*.default.svc.cluster.local")(a) }, codes.PermissionDenied, "reserved"},
		{"a common name of the API server", func(a *attack) {
			in("default")(a)
			a.names.Subject.CommonName = "KUBERNETES.default.svc."
		}, codes.PermissionDenied, "reserved"},
		{"localhost", dns("localhost"), codes.PermissionDenied, "reserved"},
		{"a name below localhost", dns("web.localhost"), codes.PermissionDenied, "reserved"},
		{"the loopback address", func(a *attack) { a.names.IPAddresses = []net.IP{net.IPv6loopback} }, codes.PermissionDenied, "reserved"},
		{"a link-local address", func(a *attack) { a.names.IPAddresses = []net.IP{net.IPv4(169, 254, 169, 254)} }, codes.PermissionDenied, "reserved"},
		{"a pod's name without a DNS name", func(a *attack) {
			a.names.DNSNames, a.names.Subject.CommonName = nil, a.pod.Name
		}, codes.PermissionDenied, "common name web-0 is not allowed"},
		// Other contents of the CSR.
		{"no CSR", func(a *attack) { a.csr = nil }, codes.InvalidArgument, "CSR"},
		{"rubbish", func(a *attack) { a.request.Csr = []byte("CSR") }, codes.InvalidArgument, "CSR"},
		{"more after the CSR", func(a *attack) { a.request.Csr = append(csrOf(a.t, &a.names), 0) }, codes.InvalidArgument, "CSR"},
		{"a broken signature", func(a *attack) { a.request.Csr = csrOf(a.t, &a.names); a.request.Csr[len(a.request.Csr)-1] ^= 1 }, codes.InvalidArgument, "signature"},
		{"another's public key", func(a *attack) { a.request.Csr = foreignKey(a.t, &a.names) }, codes.InvalidArgument, "signature"},
		{"a weak key", func(a *attack) { a.request.Csr = weakCSR(a.t, &a.names) }, codes.InvalidArgument, "key"},
		{"an organization", raw(&x509.CertificateRequest{Subject: pkix.Name{CommonName: "web.shop", Organization: []string{"system:masters"}}, DNSNames: []string{"web.shop"}}), codes.InvalidArgument, "more than"},
		{"a certificate of a CA", raw(&x509.CertificateRequest{DNSNames: []string{"web.shop"}, ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Value: marshal(struct{ CA bool }{true})}}}), codes.InvalidArgument, "more than"},
		{"data for a template", raw(&x509.CertificateRequest{DNSNames: []string{"web.shop"}, ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 37476, 9000, 64, 1}, Value: marshal("x")}}}), codes.InvalidArgument, "more than"},
		{"a user principal name", raw(&x509.CertificateRequest{ExtraExtensions: []pkix.Extension{{Id: san, Value: marshal([]asn1.RawValue{dnsName("web.shop"), otherName})}}}), codes.InvalidArgument, "more than"},
		{"a NUL in a name", raw(&x509.CertificateRequest{ExtraExtensions: []pkix.Extension{{Id: san, Value: marshal([]asn1.RawValue{dnsName("web.shop\x00.example.com")})}}}), codes.InvalidArgument, "DNS name"},
		{"a comma in a name", raw(&x509.CertificateRequest{ExtraExtensions: []pkix.Extension{{Id: san, Value: marshal([]asn1.RawValue{dnsName("web.shop,db.prod")})}}}), codes.InvalidArgument, "DNS name"},
		{"an empty name", raw(&x509.CertificateRequest{ExtraExtensions: []pkix.Extension{{Id: san, Value: marshal([]asn1.RawValue{dnsName("")})}}}), codes.InvalidArgument, "DNS name"},
		// Other fields of the request.
		{"an unknown issuer", func(a *attack) { a.request.Issuer = "../default" }, codes.NotFound, "no such issuer"},
		{"no lifetime", func(a *attack) { a.request.DurationSeconds = 0 }, codes.PermissionDenied, "duration"},
		{"a negative lifetime", func(a *attack) { a.request.DurationSeconds = -3600 }, codes.PermissionDenied, "duration"},
		{"a long lifetime", func(a *attack) { a.request.DurationSeconds = 25 * 3600 }, codes.PermissionDenied, "duration"},
		{"a lifetime that overflows", func(a *attack) { a.request.DurationSeconds = math.MaxInt64/int64(time.Second) + 3600 }, codes.PermissionDenied, "duration"},
		{"an oversized message", func(a *attack) { a.request.Csr = make([]byte, 200<<10) }, codes.ResourceExhausted, "larger than max"},
	} {
		t.Run(test.name, func(t *testing.T) {
			a := newAttack(t, r)
			test.mount(a)
			before := ca.Signs()
			expect(t, a.call(client), test.code, test.message)
			if after := ca.Signs(); after != before {
				t.Errorf("the CA received %d signing requests", after-before)
			}
			if test.code != codes.ResourceExhausted {
				node.Eventually(t, time.Minute, "a line in the audit log", func() bool { return r.replicas[0].logs.Has(test.message) })
			}
		})
	}
	if err := newAttack(t, r).call(client); err != nil {
		t.Errorf("the valid call failed after the attacks: %v", err)
	}
}

// foreignKey returns a CSR with a public key whose private key the caller does not
// have.
func foreignKey(t *testing.T, names *x509.CertificateRequest) []byte {
	own, other := csrOf(t, names), csrOf(t, names)
	parsed, err := x509.ParseCertificateRequest(own)
	node.Must(t, err)
	foreign, err := x509.ParseCertificateRequest(other)
	node.Must(t, err)
	return []byte(strings.Replace(string(own), string(parsed.RawSubjectPublicKeyInfo), string(foreign.RawSubjectPublicKeyInfo), 1))
}

func weakCSR(t *testing.T, names *x509.CertificateRequest) []byte {
	key, err := rsa.GenerateKey(rand.Reader, 1024)
	node.Must(t, err)
	der, err := x509.CreateCertificateRequest(rand.Reader, names, key)
	node.Must(t, err)
	return der
}

// A client above its rate limit is throttled; other clients are not.
func TestAttackAuthorityFlood(t *testing.T) {
	t.Parallel()
	r := startAuthority(t, startCA(t), 1, "  limits: {node: {rate: 0.001, burst: 8}, pod: {rate: 0.001, burst: 3}}\n")
	client := r.client(t)
	ask := func(pod, name string) codes.Code {
		a := newAttack(t, r)
		p := a.pod
		p.UID, p.Node = pod, name
		a.as(p)
		of := plugin
		of.Node = name
		r.reviews.Bind(a.token, of)
		return status.Code(a.call(client))
	}
	for i, want := range []codes.Code{codes.OK, codes.OK, codes.OK, codes.ResourceExhausted} {
		if got := ask("first", "node-1"); got != want {
			t.Errorf("call %d for one pod: %s", i, got)
		}
	}
	for i, want := range []codes.Code{codes.OK, codes.OK, codes.OK, codes.OK, codes.ResourceExhausted} {
		if got := ask(fmt.Sprint("pod-", i), "node-1"); got != want {
			t.Errorf("call %d from one node: %s", i, got)
		}
	}
	if got := ask("other", "node-2"); got != codes.OK {
		t.Errorf("a call from another node: %s", got)
	}
}

// The registration authority disconnects slow, silent and unencrypted clients. They
// do not delay other clients.
func TestAttackAuthoritySlowClients(t *testing.T) {
	t.Parallel()
	r := startAuthority(t, startCA(t), 1, "")
	address := net.JoinHostPort("127.0.0.1", r.port)
	client := r.client(t)
	cut := func(what string, connection net.Conn, limit time.Duration) {
		t.Helper()
		begin := time.Now()
		_ = connection.SetReadDeadline(begin.Add(limit + 30*time.Second))
		for buffer := make([]byte, 1024); ; {
			if _, err := connection.Read(buffer); err != nil {
				break
			}
		}
		if took := time.Since(begin); took > limit {
			t.Errorf("%s: disconnected only after %s", what, took)
		}
	}
	silent, err := net.Dial("tcp", address)
	node.Must(t, err)
	defer silent.Close()
	slow := newAttack(t, r)
	begin := time.Now()
	stream, err := grpcStream(t, r, slow.headers)
	node.Must(t, err)
	for range 20 {
		if err := newAttack(t, r).call(client); err != nil {
			t.Fatalf("a valid call, with slow clients connected: %v", err)
		}
	}
	cut("a client that says nothing", silent, 15*time.Second)
	// This client sent its headers and never sends its message.
	err = stream.RecvMsg(&rapb.SignResponse{})
	if took := time.Since(begin); took > 40*time.Second || status.Code(err) == codes.OK {
		t.Errorf("a client that never finishes its request: disconnected after %s: %v", took, err)
	}
	plain, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	node.Must(t, err)
	defer plain.Close()
	if got := status.Code(newAttack(t, r).call(rapb.NewRegistrationAuthorityClient(plain))); got != codes.Unavailable {
		t.Errorf("a call without TLS: %s", got)
	}
	if _, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}); err == nil || !strings.Contains(err.Error(), "protocol version") {
		t.Errorf("a connection with TLS 1.2: %v", err)
	}
}

func grpcStream(t *testing.T, r *authorities, headers metadata.MD) (grpc.ClientStream, error) {
	roots := x509.NewCertPool()
	roots.AddCert(r.ca.Root())
	connection, err := grpc.NewClient(net.JoinHostPort("127.0.0.1", r.port), grpc.WithTransportCredentials(
		credentials.NewTLS(&tls.Config{RootCAs: roots, ServerName: authorityHost})))
	node.Must(t, err)
	t.Cleanup(func() { connection.Close() })
	return connection.NewStream(metadata.NewOutgoingContext(t.Context(), headers), &grpc.StreamDesc{ClientStreams: true}, rapb.RegistrationAuthority_Sign_FullMethodName)
}

// Without the API server the registration authority cannot verify identities, so it
// signs nothing.
func TestAttackAuthorityWithoutAPIServer(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	r := startAuthority(t, ca, 1, "")
	client := r.client(t)
	before := ca.Signs()
	r.reviews.Hang(true)
	expect(t, newAttack(t, r).call(client), codes.Unavailable, "review a token")
	r.reviews.Hang(false)
	r.reviews.Stop()
	expect(t, newAttack(t, r).call(client), codes.Unavailable, "review a token")
	if after := ca.Signs(); after != before {
		t.Errorf("the CA received %d signing requests", after-before)
	}
}
