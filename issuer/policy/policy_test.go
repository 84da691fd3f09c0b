package policy

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"cel.dev/cel-go/cel"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
)

func testPod() issuer.Pod {
	return issuer.Pod{
		Namespace:      "prod",
		Name:           "web-0",
		UID:            "0b6c6a80-8f2d-4b7b-9e43-2f5c5a1f3f10",
		ServiceAccount: "web",
		Node:           "node-1",
	}
}

// texts is a request as text, before parsing.
type texts struct {
	CommonName                                  string
	DNSNames, IPAddresses, URIs, EmailAddresses []string
}

func testRequest() texts {
	return texts{
		CommonName: "web.prod",
		DNSNames:   []string{"web.prod", "web.prod.svc", "web.prod.svc.cluster.local"},
		URIs:       []string{"spiffe://example.org/ns/prod/sa/web"},
	}
}

// parse parses the names like issuer.ReadCSR does.
func (r texts) parse() (issuer.Request, error) {
	req := issuer.Request{Duration: 24 * time.Hour, KeyType: issuer.ECDSAP256}
	var failed [5]error
	if r.CommonName != "" {
		req.CommonName, failed[0] = names.ParseCommonName(r.CommonName)
	}
	req.DNSNames, failed[1] = names.ParseAll(names.Exactly(names.ParseDNSName), r.DNSNames...)
	req.IPAddresses, failed[2] = names.ParseAll(names.ParseIP, r.IPAddresses...)
	req.URIs, failed[3] = names.ParseAll(names.ParseURI, r.URIs...)
	req.EmailAddresses, failed[4] = names.ParseAll(names.ParseEmailAddress, r.EmailAddresses...)
	return req, errors.Join(failed[:]...)
}

// check parses the request and evaluates the policy. Every error of the policy must
// be a denial.
func (r texts) check(t testing.TB, p *Policy, pod issuer.Pod) error {
	t.Helper()
	req, err := r.parse()
	if err != nil {
		return err
	}
	if err = p.Check(t.Context(), pod, req); err != nil && !errors.Is(err, issuer.Denied) {
		t.Errorf("%v is not a denial", err)
	}
	return err
}

func testConfig(validations ...Validation) Config {
	return Config{
		ClusterDomain: names.Must(names.ParseClusterDomain("cluster.local")),
		TrustDomain:   names.Must(names.ParseTrustDomain("example.org")),
		Validations:   validations,
	}
}

func newPolicy(t testing.TB, c Config) *Policy {
	t.Helper()
	p, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestNewRefuses(t *testing.T) {
	tests := map[string]struct {
		validation Validation
		want       []string
	}{
		"a misspelt field of pod": {
			Validation{Expression: "pod.namspace == 'x'"},
			[]string{"validations[1].expression:1:4", "undefined field 'namspace'", "pod.namspace == 'x'", "...^"},
		},
		"a misspelt field of request in a message": {
			Validation{Expression: "true", MessageExpression: "'no ' +\nrequest.commonname"},
			[]string{"validations[1].messageExpression:2:8", "undefined field 'commonname'", "request.commonname", ".......^"},
		},
		"a misspelt field of config": {
			Validation{Expression: "config.cluster == 'x'"},
			[]string{"validations[1].expression:1:7", "undefined field 'cluster'"},
		},
		"an unknown variable": {
			Validation{Expression: "object.name == 'x'"},
			[]string{"validations[1].expression:1:1", "undeclared reference to 'object'"},
		},
		"a syntax error": {
			Validation{Expression: "pod.name == "},
			[]string{"validations[1].expression:1:13", "Syntax error"},
		},
		"a comparison of a list with a string": {
			Validation{Expression: "request.dnsNames == pod.name"},
			[]string{"validations[1].expression:1:18", "list(string)"},
		},
		"a regular expression that does not parse": {
			Validation{Expression: "pod.name.matches('(')"},
			[]string{"validations[1].expression:1:18", "invalid matches argument"},
		},
		"a string as the result": {
			Validation{Expression: "pod.name"},
			[]string{"validations[1].expression", "returns string", "must return bool", "pod.name"},
		},
		"a dyn as the result": {
			Validation{Expression: "dyn(true)"},
			[]string{"validations[1].expression", "returns dyn", "must return bool"},
		},
		"a number as the message": {
			Validation{Expression: "true", MessageExpression: "request.dnsNames.size()"},
			[]string{"validations[1].messageExpression", "returns int", "must return string"},
		},
		"an empty expression": {
			Validation{Message: "no"},
			[]string{"validations[1].expression", "must not be empty"},
		},
		"loops in loops": {
			Validation{Expression: "request.dnsNames.all(a, request.dnsNames.all(b, request.dnsNames.all(c, a + b != c)))"},
			[]string{"validations[1].expression", "may cost up to", "limit"},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := New(testConfig(Validation{Expression: "true"}, test.validation))
			if err == nil {
				t.Fatal("New accepted the configuration")
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error does not contain %q:\n%v", want, err)
				}
			}
		})
	}
}

func TestNewShowsAllErrors(t *testing.T) {
	_, err := New(testConfig(Validation{Expression: "a"}, Validation{Expression: "true"}, Validation{Expression: "b"}))
	if err == nil || !strings.Contains(err.Error(), "validations[0]") || !strings.Contains(err.Error(), "validations[2]") {
		t.Errorf("got %v, want an error about validations 0 and 2", err)
	}
}

func TestNewRefusesNoDomains(t *testing.T) {
	for _, change := range []func(*Config){
		func(c *Config) { c.ClusterDomain = names.ClusterDomain{} },
		func(c *Config) { c.TrustDomain = spiffeid.TrustDomain{} },
	} {
		c := testConfig()
		change(&c)
		if _, err := New(c); err == nil {
			t.Errorf("New accepted %+v", c)
		}
	}
}

func TestCheckCustom(t *testing.T) {
	tests := map[string]struct {
		validations []Validation
		want        string // the denial, without who decides; empty if allowed
	}{
		"every variable has its value": {validations: []Validation{
			{Expression: `pod.namespace == 'prod' && pod.name == 'web-0' && pod.uid.startsWith('0b6c') && pod.serviceAccount == 'web' && pod.node == 'node-1'`},
			{Expression: `request.commonName == 'web.prod' && request.dnsNames.size() == 3 && request.dnsNames[1] == 'web.prod.svc'`},
			{Expression: `request.uris == ['spiffe://example.org/ns/prod/sa/web'] && request.emailAddresses == ['web@example.org']`},
			{Expression: `request.duration == duration('24h') && request.keyType == 'ecdsa-p256'`},
			{Expression: `request.ipAddresses == ['10.1.2.3', '2001:db8::1']`},
			{Expression: `config.clusterDomain == 'cluster.local' && config.trustDomain == 'example.org' && !config.allowShortNames`},
		}},
		"the libraries": {validations: []Validation{
			{Expression: `pod.name.split('-')[0].upperAscii() == 'WEB' && '%s!'.format([pod.name]) == 'web-0!' && ['a', 'b'].join('.') == 'a.b'`},
			{Expression: `request.dnsNames.all(n, n.matches('^web[.]')) && request.dnsNames.exists(n, n.endsWith('.svc'))`},
			{Expression: `request.ipAddresses.filter(i, ip(i).family() == 4).all(i, cidr('10.0.0.0/8').containsIP(i))`},
			{Expression: `sets.contains(['web.prod', 'x'], ['x'])`},
			{Expression: `1 < 2.5 && request.duration <= duration('24h')`},
		}},
		"the first that fails has the word": {
			validations: []Validation{{Expression: "true"}, {Expression: "false", Message: "one"}, {Expression: "false", Message: "two"}},
			want:        "denied: one",
		},
		"without a message it is the expression": {
			validations: []Validation{{Expression: " pod.namespace == 'x'\n"}},
			want:        "denied: failed expression: pod.namespace == 'x'",
		},
		"the message expression goes before the message": {
			validations: []Validation{{Expression: "false", Message: "plain", MessageExpression: "'not in ' + pod.namespace"}},
			want:        "denied: not in prod",
		},
		"a message expression that cannot be evaluated": {
			validations: []Validation{{Expression: "false", Message: "plain", MessageExpression: "request.dnsNames[99]"}},
			want:        "denied: plain",
		},
		"a blank message expression": {
			validations: []Validation{{Expression: "false", Message: "plain", MessageExpression: "'  '"}},
			want:        "denied: plain",
		},
		"a message expression of two lines": {
			validations: []Validation{{Expression: "false", Message: "plain", MessageExpression: `"a\nb"`}},
			want:        "denied: plain",
		},
		"an index out of range denies": {
			validations: []Validation{{Expression: "request.dnsNames[99] != 'x'"}},
			want:        "denied: validations[0] cannot be evaluated for this request: index out of bounds: 99",
		},
		"a division by zero denies": {
			validations: []Validation{{Expression: "true"}, {Expression: "1 / (request.dnsNames.size() - 3) == 0"}},
			want:        "denied: validations[1] cannot be evaluated for this request: division by zero",
		},
		"an error on one side of or does not deny if the other holds": {
			validations: []Validation{{Expression: "request.dnsNames[99] == 'x' || true"}},
		},
	}
	req := testRequest()
	req.EmailAddresses = []string{"web@example.org"}
	req.IPAddresses = []string{"10.1.2.3", "2001:db8::1"}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			err := req.check(t, newPolicy(t, testConfig(test.validations...)), testPod())
			switch {
			case test.want == "" && err != nil:
				t.Error(err)
			case test.want != "" && (err == nil || err.Error() != test.want+" (decided by the policy in step-csi's configuration)" || !errors.Is(err, issuer.Denied)):
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

// A denial by the default list says who can allow it, and by which setting, also if the list
// stands in the configuration with other white space, as the chart writes it.
func TestDenialNamesTheSetting(t *testing.T) {
	indented := Default()
	for i := range indented {
		indented[i].Expression = strings.ReplaceAll(indented[i].Expression, "\n", "\n  ")
		indented[i].MessageExpression += "\n"
	}
	own := testConfig(indented...)
	own.Issuer = "edge"
	short := testConfig()
	short.AllowShortNames = true
	const may = "a pod in namespace prod may have <x>.prod, <x>.prod.svc and <x>.prod.svc.cluster.local"
	for name, test := range map[string]struct {
		config Config
		change change
		want   string
	}{
		"another namespace": {testConfig(), dns("web.shop.svc"), "denied: DNS name web.shop.svc is not allowed: " + may +
			" (the cluster's administrator can allow it: policy.validations; policy.allowShortNames allows names without a dot)"},
		"a short name": {testConfig(), dns("web"), "denied: DNS name web is not allowed: " + may +
			" (the cluster's administrator can allow it: policy.validations; policy.allowShortNames allows names without a dot)"},
		"short names allowed": {short, dns("web.shop.svc"), "denied: DNS name web.shop.svc is not allowed: " + may +
			", and names without a dot (the cluster's administrator can allow it: policy.validations)"},
		"a list with other white space": {own, dns("web.shop.svc"), "denied: DNS name web.shop.svc is not allowed: " + may +
			" (the cluster's administrator can allow it: policy.validations or issuers.edge.policy.validations; policy.allowShortNames allows names without a dot)"},
		"an IP address of a named issuer": {own, ips("10.0.0.1"), "denied: IP address 10.0.0.1 is not allowed: use a DNS name" +
			" (the cluster's administrator can allow it: policy.validations or issuers.edge.policy.validations)"},
	} {
		p, r := testPod(), testRequest()
		p.Namespace = "prod"
		test.change(&p, &r)
		if err := r.check(t, newPolicy(t, test.config), p); err == nil || err.Error() != test.want {
			t.Errorf("%s:\n got %v\nwant %s", name, err, test.want)
		}
	}
}

func TestCheckCostLimit(t *testing.T) {
	env, err := newEnvironment()
	if err != nil {
		t.Fatal(err)
	}
	ast, issues := env.Compile("request.dnsNames.all(a, request.dnsNames.all(b, a + b != ''))")
	if issues.Err() != nil {
		t.Fatal(issues.Err())
	}
	for limit, allowed := range map[uint64]bool{costLimit: true, 20: false} {
		program, err := newProgram(env, ast, limit)
		if err != nil {
			t.Fatal(err)
		}
		v := validation{name: "validations[0]", expression: program}
		err = v.check(t.Context(), (&Policy{issuer: "default"}).variables(testPod(), names.Must(testRequest().parse())))
		if allowed && err != nil || !allowed && (!errors.Is(err, issuer.Denied) || !strings.Contains(err.Error(), "cost limit exceeded")) {
			t.Errorf("with a limit of %d: %v", limit, err)
		}
	}
}

// TestCheckLargest checks the largest requests that reach CEL: neither the
// compilation nor the evaluation of the default policy exceeds the cost limit.
func TestCheckLargest(t *testing.T) {
	label := strings.Repeat("a", 63)
	req := testRequest()
	req.URIs = nil
	req.DNSNames = slices.Repeat([]string{label[:58] + ".prod.svc.cluster.local"}, names.MaxNames)
	req.CommonName = ""
	p := newPolicy(t, testConfig())
	if err := req.check(t, p, testPod()); err != nil {
		t.Error(err)
	}
	req.DNSNames[names.MaxNames-1] = "web.other"
	if err := req.check(t, p, testPod()); err == nil || !strings.Contains(err.Error(), "DNS name web.other is not allowed") {
		t.Errorf("got %v, want the message about web.other", err)
	}
}

func TestCheckCanceled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := newPolicy(t, testConfig()).Check(ctx, testPod(), names.Must(testRequest().parse()))
	if !errors.Is(err, context.Canceled) || errors.Is(err, issuer.Denied) {
		t.Errorf("got %v, want the context's error and no denial", err)
	}
}

func TestCheckConcurrently(t *testing.T) {
	p := newPolicy(t, testConfig())
	var wg sync.WaitGroup
	for _, namespace := range []string{"prod", "a", "b", "c", "d", "e", "f", "g"} {
		wg.Go(func() {
			pod := testPod()
			pod.Namespace = namespace
			for range 100 {
				if err := testRequest().check(t, p, pod); (err == nil) != (namespace == "prod") {
					t.Errorf("in namespace %s: %v", namespace, err)
				}
			}
		})
	}
	wg.Wait()
}

// TestSizesAreKnown checks that every variable has a declared maximum size. A string
// or list without one would make the cost estimate reject nearly every expression.
func TestSizesAreKnown(t *testing.T) {
	env, err := newEnvironment()
	if err != nil {
		t.Fatal(err)
	}
	for _, expression := range []string{
		"pod.namespace.contains('x') && pod.name.contains('x') && pod.uid.contains('x') && pod.serviceAccount.contains('x') && pod.node.contains('x')",
		"request.commonName.contains('x') && request.keyType.contains('x')",
		"request.dnsNames.all(n, n.contains('x')) && request.ipAddresses.all(n, n.contains('x'))",
		"request.uris.all(n, n.contains('x')) && request.emailAddresses.all(n, n.contains('x'))",
		"config.clusterDomain.contains('x') && config.trustDomain.contains('x')",
	} {
		if _, err := compile(env, "test", expression, cel.BoolType); err != nil {
			t.Error(err)
		}
	}
}

func BenchmarkCheck(b *testing.B) {
	p := newPolicy(b, testConfig())
	pod, req := testPod(), names.Must(testRequest().parse())
	b.ReportAllocs()
	for b.Loop() {
		if err := p.Check(b.Context(), pod, req); err != nil {
			b.Fatal(err)
		}
	}
}

// Kubernetes allows longer labels in object names than DNS does.
func TestLongObjectNames(t *testing.T) {
	p := newPolicy(t, testConfig())
	pod := issuer.Pod{Namespace: "prod", Name: strings.Repeat("a", 100) + "-0", UID: "uid-0", ServiceAccount: strings.Repeat("b", 70), Node: "node-1"}
	if err := (texts{CommonName: "web.prod", DNSNames: []string{"web.prod"}}).check(t, p, pod); err != nil {
		t.Error(err)
	}
}
