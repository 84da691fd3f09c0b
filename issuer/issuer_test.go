package issuer_test

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"go.step.sm/crypto/minica"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
	"github.com/flexstack/step-csi/issuer/trust"
)

// hostileSigner signs the request, but spoil changes the certificate first.
type hostileSigner struct {
	ca    *minica.CA
	roots []*x509.Certificate
	spoil func(*x509.Certificate)
	// answer replaces the chain, if set.
	answer func(leaf *x509.Certificate) []*x509.Certificate
}

func newSigner(t *testing.T) *hostileSigner {
	t.Helper()
	ca, err := minica.New()
	if err != nil {
		t.Fatal(err)
	}
	return &hostileSigner{ca: ca, roots: []*x509.Certificate{ca.Root}, spoil: func(*x509.Certificate) {}}
}

func (*hostileSigner) Connect(context.Context) error { return nil }

func (s *hostileSigner) Roots(context.Context) (issuer.Roots, error) {
	return issuer.Roots{Own: s.roots}, nil
}
func (s *hostileSigner) RefreshRoots(ctx context.Context) (issuer.Roots, error) { return s.Roots(ctx) }
func (s *hostileSigner) Trust() *trust.Store                                    { return nil }

func (s *hostileSigner) Sign(_ context.Context, req issuer.SigningRequest) ([]*x509.Certificate, error) {
	template := &x509.Certificate{
		Subject:        req.CSR.Subject,
		DNSNames:       req.CSR.DNSNames,
		IPAddresses:    req.CSR.IPAddresses,
		URIs:           req.CSR.URIs,
		EmailAddresses: req.CSR.EmailAddresses,
		PublicKey:      req.CSR.PublicKey,
		NotBefore:      time.Now().Add(-time.Minute),
		NotAfter:       time.Now().Add(req.Request.Duration),
		KeyUsage:       x509.KeyUsageDigitalSignature,
	}
	s.spoil(template)
	leaf, err := s.ca.Sign(template)
	if err != nil {
		return nil, err
	}
	if s.answer != nil {
		return s.answer(leaf), nil
	}
	return []*x509.Certificate{leaf, s.ca.Intermediate}, nil
}

func request() issuer.Request {
	return issuer.Request{
		CommonName:     names.Must(names.ParseCommonName("web.shop")),
		DNSNames:       names.Must(names.ParseAll(names.ParseDNSName, "web.shop", "web.shop.svc")),
		IPAddresses:    names.Must(names.ParseAll(names.ParseIP, "10.0.0.1", "fd00::1")),
		URIs:           names.Must(names.ParseAll(names.ParseURI, "spiffe://cluster.local/ns/shop/sa/web")),
		EmailAddresses: names.Must(names.ParseAll(names.ParseEmailAddress, "web@shop.example")),
		Duration:       time.Hour,
		KeyType:        issuer.ECDSAP256,
	}
}

func allowAll(context.Context, issuer.Pod, issuer.Request) error { return nil }

func issue(t *testing.T, s issuer.Signer, p issuer.Policy, key issuer.PrivateKey) (*issuer.Credential, error) {
	t.Helper()
	i, err := issuer.New(issuer.Config{Signer: s, Policy: p})
	if err != nil {
		t.Fatal(err)
	}
	return i.Issue(t.Context(), issuer.Applicant{}, request(), key)
}

func TestIssue(t *testing.T) {
	s := newSigner(t)
	c, err := issue(t, s, allowAll, issuer.PrivateKey{})
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Chain) != 2 || !c.Chain[1].Equal(s.ca.Intermediate) || len(c.Roots.Own) != 1 {
		t.Errorf("chain of %d, %d roots", len(c.Chain), len(c.Roots.Own))
	}
	again, err := issue(t, s, allowAll, c.Key)
	if err != nil || again.Key != c.Key {
		t.Errorf("the issuer did not reuse the key: %v", err)
	}
}

func TestHostileAnswersAreRefused(t *testing.T) {
	other := newSigner(t)
	uri, _ := url.Parse("spiffe://cluster.local/ns/shop/sa/admin")
	for name, test := range map[string]struct {
		spoil func(*x509.Certificate)
		want  string
	}{
		"another key":          {func(c *x509.Certificate) { c.PublicKey = other.ca.Signer.Public() }, "another key"},
		"extra DNS name":       {func(c *x509.Certificate) { c.DNSNames = append(c.DNSNames, "db.shop") }, `template added DNS name "db.shop"; a`},
		"wildcard added":       {func(c *x509.Certificate) { c.DNSNames = append(c.DNSNames, "*.shop") }, `added DNS name "*.shop"`},
		"missing DNS name":     {func(c *x509.Certificate) { c.DNSNames = c.DNSNames[1:] }, `template removed DNS name "web.shop"; a`},
		"other URI":            {func(c *x509.Certificate) { c.URIs = []*url.URL{uri} }, `added URI "spiffe://cluster.local/ns/shop/sa/admin", removed URI "spiffe://cluster.local/ns/shop/sa/web"; a`},
		"missing URI":          {func(c *x509.Certificate) { c.URIs = nil }, `removed URI "spiffe:`},
		"extra IP address":     {func(c *x509.Certificate) { c.IPAddresses = append(c.IPAddresses, net.IPv4(10, 0, 0, 2)) }, `added IP address "10.0.0.2"`},
		"missing e-mail":       {func(c *x509.Certificate) { c.EmailAddresses = nil }, `removed e-mail address "web@shop.example"`},
		"other common name":    {func(c *x509.Certificate) { c.Subject.CommonName = "admin" }, `changed the common name from "web.shop" to "admin"`},
		"unknown type of name": {func(c *x509.Certificate) { addOtherName(c) }, "added 1 subject alternative names of a type that cannot be requested"},
		"many names": {func(c *x509.Certificate) {
			for i := range 1000 {
				c.DNSNames = append(c.DNSNames, fmt.Sprintf("%0200d.example", i))
			}
		}, "made 995 other changes"},
		"expired": {func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
		}, "expired"},
		"longer": {func(c *x509.Certificate) { c.NotAfter = time.Now().Add(20 * time.Hour) }, "longer"},
		"not yet valid, and an extra name": {func(c *x509.Certificate) {
			c.NotBefore, c.DNSNames = time.Now().Add(time.Hour), append(c.DNSNames, "db.shop")
		}, "added DNS name"},
		"a CA": {func(c *x509.Certificate) {
			c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
		}, "CA certificate"},
		"signs certificates": {func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }, "sign certificates"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSigner(t)
			s.spoil = test.spoil
			_, err := issue(t, s, allowAll, issuer.PrivateKey{})
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want an error with %q", err, test.want)
			}
			if err != nil && (len(err.Error()) > 2000 || strings.Contains(err.Error(), "\n")) {
				t.Errorf("an error of %d bytes: %.300q", len(err.Error()), err)
			}
			if errors.Is(err, issuer.Denied) || errors.Is(err, issuer.Unavailable) {
				t.Errorf("a wrong answer counts as denied or unavailable: %v", err)
			}
		})
	}
}

// addOtherName adds a Microsoft user principal name to the SANs.
func addOtherName(c *x509.Certificate) {
	names := []asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: []byte{0x06, 0x01, 0x2a, 0xa0, 0x03, 0x0c, 0x01, 'x'}}}
	add := func(tag int, value []byte) {
		names = append(names, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: tag, Bytes: value})
	}
	for _, name := range c.DNSNames {
		add(2, []byte(name))
	}
	for _, address := range c.EmailAddresses {
		add(1, []byte(address))
	}
	for _, uri := range c.URIs {
		add(6, []byte(uri.String()))
	}
	for _, ip := range c.IPAddresses {
		if v4 := ip.To4(); v4 != nil {
			ip = v4
		}
		add(7, ip)
	}
	value, err := asn1.Marshal(names)
	if err != nil {
		panic(err)
	}
	c.DNSNames, c.EmailAddresses, c.URIs, c.IPAddresses = nil, nil, nil, nil
	c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: value}}
}

func TestHostileChainsAreRefused(t *testing.T) {
	other := newSigner(t)
	for name, answer := range map[string]func(*hostileSigner, *x509.Certificate) []*x509.Certificate{
		"nothing":         func(*hostileSigner, *x509.Certificate) []*x509.Certificate { return nil },
		"no intermediate": func(_ *hostileSigner, leaf *x509.Certificate) []*x509.Certificate { return []*x509.Certificate{leaf} },
		"another intermediate": func(_ *hostileSigner, leaf *x509.Certificate) []*x509.Certificate {
			return []*x509.Certificate{leaf, other.ca.Intermediate}
		},
		"another root": func(s *hostileSigner, leaf *x509.Certificate) []*x509.Certificate {
			s.roots = []*x509.Certificate{other.ca.Root}
			return []*x509.Certificate{leaf, s.ca.Intermediate, s.ca.Root}
		},
		"the root itself": func(s *hostileSigner, _ *x509.Certificate) []*x509.Certificate {
			return []*x509.Certificate{s.ca.Root}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSigner(t)
			s.answer = func(leaf *x509.Certificate) []*x509.Certificate { return answer(s, leaf) }
			if c, err := issue(t, s, allowAll, issuer.PrivateKey{}); err == nil {
				t.Errorf("got a chain of %d", len(c.Chain))
			}
		})
	}
}

// The issuer verifies every answer with the current roots, whatever it verified
// before.
func TestEveryChainIsVerified(t *testing.T) {
	s, other := newSigner(t), newSigner(t)
	i, err := issuer.New(issuer.Config{Signer: s, Policy: allowAll})
	if err != nil {
		t.Fatal(err)
	}
	issue := func() (*issuer.Credential, error) {
		return i.Issue(t.Context(), issuer.Applicant{}, request(), issuer.PrivateKey{})
	}
	for range 3 {
		if c, err := issue(); err != nil || len(c.Chain) != 2 || !c.Chain[1].Equal(s.ca.Intermediate) {
			t.Fatal(err)
		}
	}
	genuine := s.ca
	s.answer = func(leaf *x509.Certificate) []*x509.Certificate {
		return []*x509.Certificate{leaf, genuine.Intermediate}
	}
	s.ca = other.ca
	if _, err := issue(); err == nil {
		t.Error("a leaf of another CA passed with the previous intermediate")
	}
	s.ca = genuine
	s.roots = []*x509.Certificate{other.ca.Root}
	if _, err := issue(); err == nil {
		t.Error("the intermediate passed after the removal of its root")
	}
	s.roots = []*x509.Certificate{genuine.Root, other.ca.Root}
	if _, err := issue(); err != nil {
		t.Error(err)
	}
	s.answer, s.ca = nil, other.ca
	if c, err := issue(); err != nil || !c.Chain[1].Equal(other.ca.Intermediate) {
		t.Errorf("another CA with a known root: %v", err)
	}
}

// A pod that requests subject fields, or has template data, gets exactly the fields that it
// requests.
func TestHostileSubjectsAreRefused(t *testing.T) {
	subject := func(r *issuer.Request) {
		r.Subject.Organizations = names.Must(names.ParseAll(names.ParseOrganization, "Acme", "Shop"))
		r.Subject.Countries = names.Must(names.ParseAll(names.ParseCountry, "DE"))
	}
	data := func(r *issuer.Request) { r.TemplateData = names.Must(issuer.ParseTemplateData(`{"team": "shop"}`)) }
	granted := func(c *x509.Certificate) {
		c.Subject.Organization, c.Subject.Country = []string{"Shop", "Acme"}, []string{"DE"}
	}
	extra := func(id ...int) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			granted(c)
			c.Subject.ExtraNames = append(c.Subject.ExtraNames, pkix.AttributeTypeAndValue{Type: id, Value: "admin"})
		}
	}
	for name, test := range map[string]struct {
		request func(*issuer.Request)
		spoil   func(*x509.Certificate)
		want    string // "" if it is accepted
	}{
		"as requested": {subject, granted, ""},
		"no common name": {subject, func(c *x509.Certificate) {
			granted(c)
			c.Subject.CommonName = ""
		}, ""},
		"nothing, with template data": {data, func(*x509.Certificate) {}, ""},
		"ignored":                     {subject, func(*x509.Certificate) {}, `removed organization "Acme", removed organization "Shop", removed country "DE"; a certificate must have exactly`},
		"one removed": {subject, func(c *x509.Certificate) {
			granted(c)
			c.Subject.Organization = []string{"Acme"}
		}, `template removed organization "Shop"; a`},
		"one changed": {subject, func(c *x509.Certificate) {
			granted(c)
			c.Subject.Organization = []string{"Acme", "system:masters"}
		}, `template added organization "system:masters", removed organization "Shop"; a`},
		"other case": {subject, func(c *x509.Certificate) {
			granted(c)
			c.Subject.Organization = []string{"acme", "Shop"}
		}, `added organization "acme"`},
		"another field": {subject, func(c *x509.Certificate) {
			granted(c)
			c.Subject.OrganizationalUnit = []string{"Web"}
		}, `added organizational unit "Web"`},
		"in another field": {subject, func(c *x509.Certificate) {
			c.Subject.OrganizationalUnit, c.Subject.Country = []string{"Acme", "Shop"}, []string{"DE"}
		}, `removed organization "Acme"`},
		"a serial number": {subject, func(c *x509.Certificate) {
			granted(c)
			c.Subject.SerialNumber = "1"
		}, "added 1 subject fields that cannot be requested"},
		"a user ID":           {subject, extra(0, 9, 2342, 19200300, 100, 1, 1), "added 1 subject fields that cannot be requested"},
		"an e-mail address":   {subject, extra(1, 2, 840, 113549, 1, 9, 1), "added 1 subject fields that cannot be requested"},
		"second common name":  {subject, extra(2, 5, 4, 3), "common name"},
		"through the data":    {data, granted, `added organization "Acme", added organization "Shop", added country "DE"`},
		"serial by the data":  {data, func(c *x509.Certificate) { c.Subject.SerialNumber = "1" }, "added 1 subject fields"},
		"without any request": {func(*issuer.Request) {}, granted, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSigner(t)
			s.spoil = test.spoil
			i, err := issuer.New(issuer.Config{Signer: s, Policy: allowAll})
			if err != nil {
				t.Fatal(err)
			}
			r := request()
			test.request(&r)
			_, err = i.Issue(t.Context(), issuer.Applicant{}, r, issuer.PrivateKey{})
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

// No pod gets the subject of a certificate of the CA, also not in another spelling.
func TestSubjectsOfTheCAAreRefused(t *testing.T) {
	s := newSigner(t)
	for _, c := range []*x509.Certificate{s.ca.Intermediate, s.ca.Root} {
		i, err := issuer.New(issuer.Config{Signer: s, Policy: allowAll})
		if err != nil {
			t.Fatal(err)
		}
		r := request()
		r.CommonName = names.Must(names.ParseCommonName(strings.ToUpper(c.Subject.CommonName)))
		if _, err = i.Issue(t.Context(), issuer.Applicant{}, r, issuer.PrivateKey{}); err == nil || !strings.Contains(err.Error(), "of a certificate of the CA; request another common name") {
			t.Errorf("%s: %v", c.Subject, err)
		}
	}
}

// Certificates outside the chain do not reach the pod, and harmless differences from
// the request pass.
func TestAcceptableAnswers(t *testing.T) {
	other := newSigner(t)
	s := newSigner(t)
	s.answer = func(leaf *x509.Certificate) []*x509.Certificate {
		return []*x509.Certificate{leaf, other.ca.Intermediate, s.ca.Root, s.ca.Intermediate}
	}
	if c, err := issue(t, s, allowAll, issuer.PrivateKey{}); err != nil || len(c.Chain) != 2 || !c.Chain[1].Equal(s.ca.Intermediate) {
		t.Errorf("an answer with additional certificates: %v", err)
	}
	for name, spoil := range map[string]func(*x509.Certificate){
		"no common name": func(c *x509.Certificate) { c.Subject = pkix.Name{Organization: []string{"Shop"}} },
		"shorter":        func(c *x509.Certificate) { c.NotAfter = time.Now().Add(time.Minute) },
		"a clock ahead":  func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) },
	} {
		s := newSigner(t)
		s.spoil = spoil
		if _, err := issue(t, s, allowAll, issuer.PrivateKey{}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The issuer evaluates the policy before it creates a key or calls the CA.
func TestPolicyComesFirst(t *testing.T) {
	deny := func(context.Context, issuer.Pod, issuer.Request) error { return issuer.Denied }
	s := newSigner(t)
	s.spoil = func(*x509.Certificate) { t.Error("the CA received a request") }
	if _, err := issue(t, s, deny, issuer.PrivateKey{}); !errors.Is(err, issuer.Denied) {
		t.Errorf("got %v", err)
	}
	for _, c := range []issuer.Config{{}, {Signer: s}, {Policy: allowAll}} {
		if _, err := issuer.New(c); err == nil {
			t.Errorf("New accepted %+v", c)
		}
	}
}

// step-ca takes a token's subject, which is the common name, for a DNS name if there is no
// other name. The policy does not see it as one, so the CA is never asked.
func TestRequestsWithoutAlternativeNamesAreDenied(t *testing.T) {
	s := newSigner(t)
	s.spoil = func(*x509.Certificate) { t.Error("the CA was asked") }
	i, err := issuer.New(issuer.Config{Signer: s, Policy: allowAll})
	if err != nil {
		t.Fatal(err)
	}
	for name, commonName := range map[string]names.CommonName{
		"no name": {}, "a common name": names.Must(names.ParseCommonName("db.prod")),
	} {
		req := issuer.Request{CommonName: commonName, Duration: time.Hour, KeyType: issuer.ECDSAP256}
		if _, err := i.Issue(t.Context(), issuer.Applicant{}, req, issuer.PrivateKey{}); !errors.Is(err, issuer.Denied) || !strings.Contains(err.Error(), "add service-names") {
			t.Errorf("%s: %v", name, err)
		}
		_, err := i.PrepareCSR(t.Context(), issuer.SigningRequest{Request: req})
		if !errors.Is(err, issuer.Denied) {
			t.Errorf("%s, from a CSR: %v", name, err)
		}
	}
}

// The signer may learn during its call that a name is reserved. Nobody gets the certificate.
func TestPolicyLearnsDuringTheCall(t *testing.T) {
	s := newSigner(t)
	var learned error
	s.spoil = func(*x509.Certificate) { learned = issuer.Denied }
	credential, err := issue(t, s, func(context.Context, issuer.Pod, issuer.Request) error { return learned }, issuer.PrivateKey{})
	if !errors.Is(err, issuer.Denied) || credential != nil {
		t.Errorf("%v, %v", credential, err)
	}
}

func TestPrivateKeysDoNotPrint(t *testing.T) {
	for _, keyType := range issuer.KeyTypes()[:4] {
		key, err := keyType.Generate()
		if err != nil {
			t.Fatal(err)
		}
		encoded, err := json.Marshal(struct{ Key issuer.PrivateKey }{key})
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{
			fmt.Sprint(key), fmt.Sprintf("%+v", key), fmt.Sprintf("%#v", key), fmt.Sprintf("%x", key), fmt.Sprintf("%d", key),
			// Skip the time, which also contains digits.
			strings.ReplaceAll(fmt.Sprintf("%+v", &issuer.Credential{Key: key}), fmt.Sprint(time.Time{}), ""), string(encoded),
		} {
			if !strings.Contains(text, "[private key]") || strings.ContainsAny(text, "0123456789") {
				t.Errorf("%s: %s", keyType, text)
			}
		}
	}
}
