package server_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	linkedpolicy "github.com/smallstep/certificates/authority/policy"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
	"github.com/flexstack/step-csi/issuer/policy"
	"github.com/flexstack/step-csi/issuer/ra"
	"github.com/flexstack/step-csi/issuer/ra/server"
	"github.com/flexstack/step-csi/issuer/stepca"
	"github.com/flexstack/step-csi/test/embeddedca"
	"github.com/flexstack/step-csi/test/reviews"
)

// sentence is a mistake or an outage, and what a person reads of it in the pod's event,
// after "issuer <name>: ". In mode ra, the registration authority stands before it.
type sentence struct {
	name    string
	config  func() stepca.Config
	dns     string // the requested name; web.shop.svc if it is empty
	outcome issuer.Outcome
	want    string // "…" at the end stands for a hint about the network
}

// Every mistake at the CA, and every outage of it, reaches the pod's event as one sentence
// that names the CA and what to change, and the same in both modes.
func TestSentencesAboutTheCA(t *testing.T) {
	good, other := start(t, embeddedca.Config{}), start(t, embeddedca.Config{Name: "Other"})
	strict := start(t, embeddedca.Config{Policy: &linkedpolicy.Options{X509: &linkedpolicy.X509PolicyOptions{
		AllowedNames: &linkedpolicy.X509NameOptions{DNSDomains: []string{"localhost", "*.example.com"}, IPRanges: []string{"127.0.0.1"}},
	}}})
	broken := start(t, embeddedca.Config{})
	broken.Intercept(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, "/sign") {
				http.Error(w, `{"status":500,"message":"The certificate authority encountered an Internal Server Error. Please see the certificate authority logs for more info."}`, http.StatusInternalServerError)
				return
			}
			next.ServeHTTP(w, r)
		})
	})
	plain := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(plain.Close)
	website := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(website.Close)
	cutting := listen(t, func(c net.Conn) {
		_, _ = c.Read(make([]byte, 1))
		_ = c.(*net.TCPConn).CloseWrite()
	})
	silent := listen(t, func(net.Conn) {})

	change := func(ca *embeddedca.CA, change func(*stepca.Config)) func() stepca.Config {
		return func() stepca.Config {
			c := configFor(ca)
			change(&c)
			return c
		}
	}
	at := func(url string) func() stepca.Config {
		return change(good, func(c *stepca.Config) { c.URL = url })
	}
	bundleAt := func(url string, bundle []byte) func() stepca.Config {
		return change(good, func(c *stepca.Config) { c.URL, c.Fingerprint, c.CABundle = url, "", bundle })
	}
	const hintOfPort = " (check the port of the issuer's url: step-ca listens on 9000 unless configured otherwise)"
	const untrusted = "; check that this is the CA's URL, and that fingerprint or caBundleFile (in the chart: caBundle) is that of this CA; " +
		"if an ingress in front of the CA has a certificate of its own, set serverTLS"
	all := []sentence{
		{"down", at("https://" + closed(t)), "", issuer.Unavailable,
			"the CA https://HOST cannot be reached: dial tcp HOST: connect: connection refused" + hintOfPort},
		{"cut", at("https://" + cutting), "", issuer.Unavailable,
			"the CA https://HOST cut the connection: EOF"},
		{"silent", change(good, func(c *stepca.Config) { c.URL, c.Timeout = "https://"+silent, time.Second }), "", issuer.Unavailable,
			"the CA https://HOST gives no answer in time: context deadline exceeded (is the CA overloaded, or does something on the way drop packets?)"},
		{"http", at("https://" + plain.Listener.Addr().String()), "", issuer.Unavailable,
			"the CA https://HOST: tls: first record does not look like a TLS handshake; the server at this port does not speak TLS: " +
				"correct the port of the issuer's url (step-ca listens on 9000 unless configured otherwise)"},
		{"website", at("https://" + website.Listener.Addr().String()), "", issuer.Unavailable,
			"the CA https://HOST: the answer is not from step-ca, but from something in front of it: HTTP 404 Not Found; check the issuer's url, and what is in front of the CA"},
		{"website-by-bundle", bundleAt("https://"+website.Listener.Addr().String(), good.RootPEM()), "", issuer.Unavailable,
			"the CA https://HOST is not trusted: tls: failed to verify certificate: x509: certificate signed by unknown authority" + untrusted},
		{"bundle", change(good, func(c *stepca.Config) { c.Fingerprint, c.CABundle = "", other.RootPEM() }), "", issuer.Unavailable,
			"the CA https://HOST is not trusted: tls: failed to verify certificate: x509: certificate signed by unknown authority" + untrusted},
		{"fingerprint", change(good, func(c *stepca.Config) { c.Fingerprint = other.Fingerprint() }), "", issuer.Unavailable,
			"the CA https://HOST has no root with the fingerprint HEX; compare it with: step certificate fingerprint root_ca.crt"},
		{"two-fingerprints", change(good, func(c *stepca.Config) {
			c.URL, c.Fingerprint = "https://"+closed(t), good.Fingerprint()+","+other.Fingerprint()
		}), "", issuer.Unavailable,
			"the CA https://HOST cannot be reached: dial tcp HOST: connect: connection refused" + hintOfPort},
		{"password", change(good, func(c *stepca.Config) { c.Password = secret("wrong") }), "", issuer.Unavailable,
			`the CA https://HOST: the password does not open the key of provisioner "admin" (kid "KID"): is the password in provisioner.passwordFile (in the chart: passwordSecret) that of this provisioner?`},
		{"provisioner", change(good, func(c *stepca.Config) { c.Provisioner = "Admin" }), "", issuer.Unavailable,
			`the CA https://HOST has no JWK provisioner "Admin"; it has "admin" (JWK): correct provisioner.name`},
		{"key", change(good, func(c *stepca.Config) { c.Key = secret("rubbish") }), "", issuer.Unavailable,
			"the CA https://HOST: provisioner.keyFile (in the chart: keySecret): the file is neither a JWK, nor an encrypted JWK (JWE), nor PEM"},
		{"broken", change(broken, func(*stepca.Config) {}), "", issuer.Unavailable,
			"the CA https://HOST: sign: The certificate authority encountered an Internal Server Error. Please see the certificate authority logs for more info."},
		{"policy-of-the-ca", change(strict, func(*stepca.Config) {}), "", issuer.Denied,
			`the CA https://HOST: sign: denied: The request was forbidden by the certificate authority: dns name "web.shop.svc" not allowed (the policy of the CA or of its provisioner denies the name: request another, or change x509.allow and x509.deny of that policy)`},
		{"default", change(good, func(*stepca.Config) {}), "web.pay.svc", issuer.Denied,
			"denied: DNS name web.pay.svc is not allowed: a pod in namespace shop may have <x>.shop, <x>.shop.svc and <x>.shop.svc.cluster.local " +
				"(the cluster's administrator can allow it: policy.validations or issuers.default.policy.validations; policy.allowShortNames allows names without a dot)"},
	}
	issuers, ofNodes := map[string]server.Issuer{}, map[string]*issuer.Issuer{}
	for _, s := range all {
		issuers[s.name], ofNodes[s.name] = newIssuer(t, s.name, s.config()), newIssuer(t, s.name, s.config()).Issuer
	}
	authority := serve(t, good, issuers)
	for _, s := range all {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			if s.dns == "" {
				s.dns = "web.shop.svc"
			}
			s.check(t, "mode node", s.want, ofNodes[s.name])
			s.check(t, "mode ra", "registration authority "+authority.url+": "+s.want, authority.issuer(t, s.name, func(*ra.Config) {}))
		})
	}
}

// The same for mistakes at the registration authority.
func TestSentencesAboutTheAuthority(t *testing.T) {
	good, other := start(t, embeddedca.Config{}), start(t, embeddedca.Config{Name: "Other"})
	authority := serve(t, good, map[string]server.Issuer{"default": newIssuer(t, "default", configFor(good))})
	down := closed(t)
	for _, s := range []struct {
		sentence
		change func(*ra.Config)
		token  string
	}{
		{sentence{"down", nil, "", issuer.Unavailable, "registration authority https://HOST cannot be reached: dial tcp HOST: connect: connection refused…"},
			func(c *ra.Config) { c.URL = "https://" + down }, "web"},
		{sentence{"another root", nil, "", issuer.Unavailable, "registration authority https://HOST is not trusted: the registration authority has no root with the fingerprint HEX"},
			func(c *ra.Config) { c.Fingerprint = other.Fingerprint() }, "web"},
		{sentence{"unknown issuer", nil, "", issuer.Unavailable, `registration authority https://HOST: its configuration has no such issuer: "edge"`},
			func(c *ra.Config) { c.Issuer = "edge" }, "web"},
		{sentence{"no token", nil, "", issuer.NoPodToken, "no valid token of the pod to show to the registration authority https://HOST: " +
			"the kubelet has passed no token for the audience step-csi: the CSIDriver object needs tokenRequests for it (the chart sets them with mode: ra)"},
			func(*ra.Config) {}, ""},
		{sentence{"rejected token", nil, "", issuer.NoPodToken, "registration authority https://HOST: no valid token of the pod: the token is rejected: it is unknown"},
			func(*ra.Config) {}, "stranger"},
		{sentence{"plugin not accepted", nil, "", issuer.CallerRejected, "registration authority https://HOST: the node plugin is not accepted: read the token of the node plugin's own pod: no such file"},
			func(c *ra.Config) { c.Token = func() ([]byte, error) { return nil, errors.New("no such file") } }, "web"},
		{sentence{"API server down", nil, "", issuer.Unavailable, "registration authority https://HOST: the pod's token: cannot review a token at the API server: connection refused"},
			func(*ra.Config) {}, "unreviewed"},
	} {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			s.dns = "web.shop.svc"
			i := authority.issuer(t, "default", func(c *ra.Config) {
				c.Timeout = 10 * time.Second
				s.change(c)
			})
			s.checkWith(t, "mode ra", s.want, i, s.token)
		})
	}
}

func (s sentence) check(t *testing.T, mode, want string, i *issuer.Issuer) {
	t.Helper()
	s.checkWith(t, mode, want, i, "web")
}

func (s sentence) checkWith(t *testing.T, mode, want string, i *issuer.Issuer, token string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(klog.NewContext(t.Context(), logr.Discard()), time.Minute)
	defer cancel()
	pod := issuer.Applicant{Pod: web}
	if token != "" {
		pod.Token = issuer.NewToken(reviews.Token(web, token), time.Now().Add(time.Hour))
	}
	_, err := i.Issue(ctx, pod, issuer.Request{
		CommonName: names.Must(names.ParseCommonName(s.dns)), DNSNames: names.Must(names.ParseAll(names.ParseDNSName, s.dns)), Duration: time.Hour, KeyType: issuer.ECDSAP256,
	}, issuer.PrivateKey{})
	if err == nil {
		t.Fatalf("%s: no error", mode)
	}
	if outcome := issuer.OutcomeOf(err); outcome != s.outcome {
		t.Errorf("%s: the outcome is %s, want %s", mode, outcome.Label(), s.outcome.Label())
	}
	want, prefix := strings.CutSuffix(placeholders(want), "…")
	if got := placeholders(err.Error()); got != want && !(prefix && strings.HasPrefix(got, want)) {
		t.Errorf("%s:\n got %s\nwant %s", mode, got, want)
	}
}

// placeholders replaces what differs in each run.
func placeholders(text string) string {
	for _, p := range []struct{ pattern, text string }{
		{`127\.0\.0\.1:\d+|localhost:\d+`, "HOST"}, {`[0-9a-f]{64}`, "HEX"}, {`kid "[^"]{20,}"`, `kid "KID"`},
	} {
		text = regexp.MustCompile(p.pattern).ReplaceAllString(text, p.text)
	}
	return text
}

var web = issuer.Pod{Namespace: "shop", Name: "web-0", UID: "web-uid", ServiceAccount: "web", Node: "node-1"}

func start(t *testing.T, c embeddedca.Config) *embeddedca.CA {
	t.Helper()
	ca, err := embeddedca.Start(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ca.Stop)
	return ca
}

func secret(text string) func() ([]byte, error) {
	return func() ([]byte, error) { return []byte(text), nil }
}

func configFor(ca *embeddedca.CA) stepca.Config {
	name, password := ca.Provisioner()
	return stepca.Config{URL: ca.URL(), Fingerprint: ca.Fingerprint(), Provisioner: name, Password: secret(password)}
}

// closed returns an address that refuses connections: a socket has it, and does not listen.
func closed(t *testing.T) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	bound, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint("127.0.0.1:", bound.(*unix.SockaddrInet4).Port)
}

// listen serves connections, and then reads what their clients send until they close.
func listen(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				serve(c)
				_, _ = io.Copy(io.Discard, c)
			}()
		}
	}()
	return l.Addr().String()
}

func newIssuer(t *testing.T, name string, c stepca.Config) server.Issuer {
	t.Helper()
	s, err := stepca.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	p, err := policy.New(policy.Config{
		ClusterDomain: names.Must(names.ParseClusterDomain("cluster.local")), TrustDomain: names.Must(names.ParseTrustDomain("cluster.local")), Issuer: name,
	})
	if err != nil {
		t.Fatal(err)
	}
	i, err := issuer.New(issuer.Config{Signer: s, Policy: p.Check})
	if err != nil {
		t.Fatal(err)
	}
	return server.Issuer{Issuer: i, RootsRefresh: time.Hour}
}

// authority is a registration authority on localhost.
type authority struct {
	url  string
	root string
}

// reviewed is a Reviewer that knows the tokens of the plugin and of the pod web.
type reviewed struct{}

func (reviewed) Review(_ context.Context, token issuer.Token) (issuer.Pod, error) {
	switch token.Reveal() {
	case reviews.Token(plugin, "plugin"):
		return plugin, nil
	case reviews.Token(web, "web"):
		return web, nil
	case reviews.Token(web, "unreviewed"):
		return issuer.Pod{}, issuer.Unavailable.Because(errors.New("cannot review a token at the API server: connection refused"))
	}
	return issuer.Pod{}, fmt.Errorf("%w: it is unknown", server.ErrRejected)
}

var plugin = issuer.Pod{Namespace: "step-csi", Name: "step-csi-1", UID: "plugin-uid", ServiceAccount: "step-csi", Node: "node-1"}

// serve starts a registration authority, whose own certificate the CA signs.
func serve(t *testing.T, ca *embeddedca.CA, issuers map[string]server.Issuer) authority {
	t.Helper()
	signer, err := stepca.New(configFor(ca))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(signer.Close)
	s, err := server.New(server.Config{
		Issuers: issuers, Reviewer: reviewed{}, Plugin: server.ServiceAccount{Namespace: plugin.Namespace, Name: plugin.ServiceAccount},
		Serving: server.Serving{Signer: signer, Names: names.Must(names.ParseAll(names.ParseDNSName, "localhost"))},
		Limits:  server.Limits{Pod: server.Limit{Rate: 1000, Burst: 1000}},
		Metrics: prometheus.NewRegistry(),
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(klog.NewContext(context.Background(), logr.Discard()))
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, l) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return authority{"https://localhost:" + port, ca.Fingerprint()}
}

// issuer is the issuer as a node plugin in mode ra has it.
func (a authority) issuer(t *testing.T, name string, change func(*ra.Config)) *issuer.Issuer {
	t.Helper()
	c := ra.Config{URL: a.url, Fingerprint: a.root, Issuer: name, Token: secret(reviews.Token(plugin, "plugin"))}
	change(&c)
	s, err := ra.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	i, err := issuer.New(issuer.Config{Signer: s, Policy: func(context.Context, issuer.Pod, issuer.Request) error { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	return i
}
