package server

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"net"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"
	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
	"github.com/flexstack/step-csi/issuer/policy"
	"github.com/flexstack/step-csi/issuer/ra/rapb"
	"github.com/flexstack/step-csi/issuer/trust"
	"github.com/flexstack/step-csi/test/reviews"
)

var (
	web    = issuer.Pod{Namespace: "shop", Name: "web-0", UID: "uid-web-0", ServiceAccount: "web", Node: "node-1"}
	plugin = issuer.Pod{Namespace: "step-ca", Name: "step-csi-1", UID: "uid-plugin", ServiceAccount: "step-csi", Node: "node-1"}
)

// pluginToken is the token of the plugin. The API server says that webAsPlugin is the
// token of another pod than its claims say.
var (
	pluginToken = reviews.Token(plugin, "plugin")
	webAsPlugin = reviews.Token(plugin, "web")
)

// knowing is a Reviewer that accepts three tokens.
type knowing struct{}

func (knowing) Review(_ context.Context, token issuer.Token) (issuer.Pod, error) {
	switch token.Reveal() {
	case pluginToken:
		return plugin, nil
	case "a.web.c", webAsPlugin:
		return web, nil
	}
	return issuer.Pod{}, ErrRejected
}

// recording is a Signer that records the requests and never signs.
type recording struct{ asked []issuer.SigningRequest }

func (*recording) Connect(context.Context) error                      { return nil }
func (*recording) Roots(context.Context) (issuer.Roots, error)        { return issuer.Roots{}, nil }
func (*recording) RefreshRoots(context.Context) (issuer.Roots, error) { return issuer.Roots{}, nil }
func (*recording) Trust() *trust.Store                                { return nil }
func (r *recording) Sign(_ context.Context, req issuer.SigningRequest) ([]*x509.Certificate, error) {
	r.asked = append(r.asked, req)
	return nil, issuer.Unavailable
}

func newFuzzed(t testing.TB, s issuer.Signer) *Server {
	t.Helper()
	allow, err := policy.New(policy.Config{
		ClusterDomain: names.Must(names.ParseClusterDomain("cluster.local")),
		TrustDomain:   names.Must(names.ParseTrustDomain("cluster.local")),
		Reserved:      policy.NewReserved(names.Must(names.ParseClusterDomain("cluster.local")), names.Must(names.ParseHost("ra.shop.svc"))),

		AllowSubjectFields: []string{"organizations"}, AllowTemplateData: true,
		Validations: append(policy.Default(),
			policy.Validation{Expression: "request.organizations.all(o, o == pod.namespace || o.startsWith(pod.namespace + '-'))"},
			policy.Validation{Expression: "request.templateData.size() == 0 || request.templateData.team == pod.namespace"},
		),
	})
	if err != nil {
		t.Fatal(err)
	}
	i, err := issuer.New(issuer.Config{Signer: s, Policy: allow.Check, Lifetimes: issuer.Lifetimes{Min: time.Second, Max: 24 * time.Hour}})
	if err != nil {
		t.Fatal(err)
	}
	a, err := New(Config{
		Issuers:  map[string]Issuer{"default": {Issuer: i}},
		Serving:  Serving{Issuer: "default", Signer: s, Names: names.Must(names.ParseAll(names.ParseDNSName, "ra.shop.svc")), Lifetimes: issuer.Lifetimes{Default: time.Hour}},
		Plugin:   ServiceAccount{"step-ca", "step-csi"},
		Reviewer: knowing{},
		Limits:   Limits{Node: Limit{1e9, 1e9}, Pod: Limit{1e9, 1e9}},
		Metrics:  prometheus.NewRegistry(),
	})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// subjects are subject fields and template data of requests: the policy of newFuzzed allows
// the organizations shop and <namespace>-<x>, and template data whose team is the namespace.
var subjects = []struct {
	fields *rapb.Subject
	data   string
}{
	{&rapb.Subject{Organizations: []string{"shop", "shop-web"}}, ""},
	{&rapb.Subject{Organizations: []string{"shop"}}, `{"team": "shop"}`},
	{nil, `{"team": "shop", "deep": [[{"a": 1e3}]]}`},
	{&rapb.Subject{}, ""},
	{&rapb.Subject{Organizations: []string{"other"}}, ""},
	{&rapb.Subject{Organizations: []string{"system:masters"}}, ""},
	{&rapb.Subject{Organizations: []string{" shop"}}, ""},
	{&rapb.Subject{Organizations: slices.Repeat([]string{"shop"}, 40)}, ""},
	{&rapb.Subject{OrganizationalUnits: []string{"Web"}}, ""},
	{&rapb.Subject{Countries: []string{"DE"}, PostalCodes: []string{"1"}}, ""},
	{nil, `{"team": "pay"}`},
	{nil, `{"team": "shop", "team": "pay"}`},
	{nil, `{"team": "shop", "subject": {"organization": ["root"]}}`},
	{nil, `{"team": "shop", "n": 1e999}`},
}

// FuzzSign takes a request in wire format: whatever it contains, the CA receives
// only the pod's own names, all of which are in the CSR.
func FuzzSign(f *testing.F) {
	for _, change := range []func(*x509.CertificateRequest){
		func(*x509.CertificateRequest) {},
		func(r *x509.CertificateRequest) { r.DNSNames = append(r.DNSNames, "db.prod.svc") },
		func(r *x509.CertificateRequest) { r.DNSNames = []string{"WEB.shop.svc", "*.shop.svc", "ra.shop.svc"} },
		func(r *x509.CertificateRequest) { r.Subject.CommonName = "postgres" },
		func(r *x509.CertificateRequest) { r.IPAddresses = []net.IP{net.IPv4(10, 0, 0, 1)} },
		func(r *x509.CertificateRequest) { r.EmailAddresses = []string{"a@b.example"} },
		func(r *x509.CertificateRequest) { r.URIs = nil },
	} {
		id, _ := url.Parse("spiffe://cluster.local/ns/shop/sa/web")
		template := &x509.CertificateRequest{Subject: pkix.Name{CommonName: "web.shop"}, DNSNames: []string{"web.shop"}, URIs: []*url.URL{id}}
		change(template)
		key, err := issuer.ECDSAP256.Generate()
		if err != nil {
			f.Fatal(err)
		}
		csr, err := x509.CreateCertificateRequest(rand.Reader, template, key.Signer)
		if err != nil {
			f.Fatal(err)
		}
		for _, subject := range subjects {
			wire, err := proto.Marshal(&rapb.SignRequest{
				Issuer: "default", Csr: csr, DurationSeconds: 3600, PodToken: "a.web.c", Subject: subject.fields, TemplateData: subject.data,
				Pod: &rapb.Pod{Namespace: web.Namespace, Name: web.Name, Uid: web.UID, ServiceAccount: web.ServiceAccount, Node: web.Node},
			})
			if err != nil {
				f.Fatal(err)
			}
			f.Add(wire)
		}
		for _, usual := range []bool{false, true} {
			wire, err := proto.Marshal(&rapb.SignRequest{
				Issuer: "default", Csr: csr, DurationSeconds: 3600, DefaultLifetime: usual, PodToken: "a.web.c",
				Pod: &rapb.Pod{Namespace: web.Namespace, Name: web.Name, Uid: web.UID, ServiceAccount: web.ServiceAccount, Node: web.Node},
			})
			if err != nil {
				f.Fatal(err)
			}
			f.Add(wire)
		}
	}
	ctx := klog.NewContext((&call{caller: plugin}).context(context.Background()), logr.Discard())
	s := &recording{}
	a := newFuzzed(f, s)
	f.Fuzz(func(t *testing.T, wire []byte) {
		req := &rapb.SignRequest{}
		if proto.Unmarshal(wire, req) != nil {
			return
		}
		s.asked = nil
		if _, err := a.Sign(ctx, req); err == nil {
			t.Fatal("Sign succeeded, but the signer never signs")
		} else if len(s.asked) == 0 {
			if errors.Is(err, issuer.Unavailable) && !errors.Is(err, errUnknownIssuer) {
				t.Fatalf("the CA received no request, but the error is %v", err)
			}
			return
		}
		checkAsked(t, s.asked[0], req)
	})
}

// checkAsked checks that the pod may have everything that the CA is asked to sign.
func checkAsked(t *testing.T, asked issuer.SigningRequest, req *rapb.SignRequest) {
	if asked.Applicant.Pod != web || !slices.Equal(asked.CSR.Raw, req.GetCsr()) {
		t.Fatalf("the request is for the applicant %+v", asked.Applicant)
	}
	if d := asked.Request.Duration; asked.DefaultLifetime != req.GetDefaultLifetime() || asked.DefaultLifetime != (d == 0) || d < 0 || d > 24*time.Hour {
		t.Fatalf("the request is for %s, by default: %t", d, asked.DefaultLifetime)
	}
	csr, err := x509.ParseCertificateRequest(req.GetCsr())
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(csr.DNSNames, names.Texts(asked.Request.DNSNames)) || len(csr.URIs) != len(asked.Request.URIs) ||
		len(csr.IPAddresses)+len(csr.EmailAddresses) > 0 || csr.Subject.CommonName != asked.Request.CommonName.String() {
		t.Fatalf("the request is for %+v, but the CSR is for %+v", asked.Request, csr)
	}
	for _, name := range csr.DNSNames {
		own := strings.HasSuffix(name, ".shop") || strings.HasSuffix(name, ".shop.svc") || strings.HasSuffix(name, ".shop.svc.cluster.local")
		if !own || strings.ToLower(name) != name || slices.Contains([]string{"ra.shop", "ra.shop.svc", "ra.shop.svc.cluster.local", "*.shop.svc", "*.shop.svc.cluster.local"}, name) {
			t.Fatalf("the request has the DNS name %q", name)
		}
	}
	for _, o := range asked.Request.Subject.Organizations {
		if text := o.String(); text != "shop" && !strings.HasPrefix(text, "shop-") {
			t.Fatalf("the request has the organization %q", text)
		}
	}
	if len(asked.Request.Subject.Values()) != len(req.GetSubject().GetOrganizations()) || len(asked.Request.Subject.Organizations) != len(req.GetSubject().GetOrganizations()) {
		t.Fatalf("the request has the subject %+v, the message %v", asked.Request.Subject, req.GetSubject())
	}
	var read map[string]any
	if input := asked.Request.TemplateInput(); input != nil && json.Unmarshal(input, &read) != nil {
		t.Fatalf("the template reads %s", input)
	}
	if _, has := read["subject"]; has != (len(asked.Request.Subject.Organizations) > 0) {
		t.Fatalf("the template reads %v", read)
	}
	if delete(read, "subject"); len(read) > 0 && read["team"] != "shop" {
		t.Fatalf("the template reads %v", read)
	}
	for _, uri := range csr.URIs {
		if uri.String() != "spiffe://cluster.local/ns/shop/sa/web" {
			t.Fatalf("the request has the URI %s", uri)
		}
	}
	if cn := csr.Subject.CommonName; !slices.Contains(append([]string{"", web.UID, web.Name}, csr.DNSNames...), cn) {
		t.Fatalf("the request has the common name %q", cn)
	}
}
