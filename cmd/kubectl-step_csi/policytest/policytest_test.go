package policytest

import (
	"context"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/issuer"
)

var update = flag.Bool("update", false, "write the golden files")

const uid = "00000000-0000-4000-8000-000000000000"

// options are of a pod of the service account shop/orders, with pairs of attributes.
func options(values string, pairs ...string) Options {
	o := Options{
		Release: Release{Name: "step-csi", Namespace: "step-ca"}, Attributes: map[string]string{},
		Pod: issuer.Pod{Namespace: "shop", ServiceAccount: "orders", UID: uid},
	}
	if values != "" {
		o.Files = []string{values}
	}
	for i := 0; i < len(pairs); i += 2 {
		o.Attributes[pairs[i]] = pairs[i+1]
	}
	return o
}

func evaluate(t *testing.T, o Options) Verdict {
	t.Helper()
	all, err := Evaluate(t.Context(), o, strings.NewReader(""))
	if err != nil || len(all) != 1 {
		t.Fatalf("%d verdicts: %v", len(all), err)
	}
	return all[0]
}

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestPrint(t *testing.T) {
	manifests := options("testdata/values.yaml")
	manifests.PodFile, manifests.Pod = "testdata/shop.yaml", issuer.Pod{UID: uid}
	for name, o := range map[string]Options{
		"default":   options("", "service-names", "orders", "duration", "90m"),
		"denied":    options("", "dns-names", "orders.shop,www.example.com,step-csi-ra.step-ca", "ip-sans", "192.0.2.1", "organizations", "Shop"),
		"manifests": manifests,
	} {
		t.Run(name, func(t *testing.T) {
			verdicts, err := Evaluate(t.Context(), o, strings.NewReader(""))
			if err != nil {
				t.Fatal(err)
			}
			var got strings.Builder
			if err := Print(&got, verdicts); err != nil {
				t.Fatal(err)
			}
			path := "testdata/" + name + ".txt"
			if *update {
				if err := os.WriteFile(path, []byte(got.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if got.String() != string(want) {
				t.Errorf("the output differs from %s (see -update):\n%s", path, &got)
			}
		})
	}
}

// unconnected is a signer that has never reached its CA, as that of a process that starts.
type unconnected struct{ issuer.Signer }

func (unconnected) LifetimeClaims() *issuer.ProvisionerClaims { return nil }

// The verdict is what an issuer says to the same pod, with a policy of the same values.
func TestVerdictIsTheIssuers(t *testing.T) {
	made, err := readInstallation([]string{"testdata/values.yaml"}, options("").Release, strings.NewReader(""))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		denied string // part of the reason; empty if the pod gets the certificate
		pairs  []string
	}{
		{"", nil},
		{"", []string{"service-names", "orders"}},
		{"", []string{"dns-names", "orders.shop.svc.example.org"}},
		{"may not have all of orders.shop.svc.cluster.local", []string{"dns-names", "orders.shop.svc.cluster.local"}},
		{"may not have all of www.example.com", []string{"dns-names", "www.example.com"}},
		{"neither IP nor e-mail", []string{"email-sans", "a@example.com"}},
		{"the name 127.0.0.1 is reserved", []string{"ip-sans", "127.0.0.1"}},
		{"the name *.step-ca.svc is reserved", []string{"dns-names", "*.step-ca.svc"}},
		{"the name web-ca.example.com is reserved", []string{"dns-names", "web-ca.example.com"}},
		{"failed expression: request.uris.all", []string{"uri-sans", "https://example.com/"}},
		{"the policy allows no countries", []string{"countries", "DE"}},
		{"", []string{"issuer", "web", "dns-names", "anything.example.com"}},
		{"", []string{"issuer", "web", "organizations", "shop"}},
		{"only the organization shop", []string{"issuer", "web", "organizations", "other"}},
		{"is reserved: the API server may take it", []string{"issuer", "web", "organizations", "system:masters"}},
		{"template data is not allowed", []string{"issuer", "web", "template-data", `{"a": 1}`}},
	} {
		o := options("testdata/values.yaml", test.pairs...)
		got := evaluate(t, o)
		a, err := attributes.Parse(o.Attributes, got.Pod, "", made.attributes)
		if err != nil {
			t.Fatal(err)
		}
		i, err := issuer.New(issuer.Config{Signer: unconnected{}, Policy: made.issuers[a.Issuer].policy.Check, Lifetimes: made.attributes.Issuers[a.Issuer]})
		if err != nil {
			t.Fatal(err)
		}
		_, err = i.PrepareCSR(t.Context(), issuer.SigningRequest{Applicant: issuer.Applicant{Pod: got.Pod}, Request: a.Request})
		if got.Allowed != (err == nil) || err != nil && !strings.HasSuffix(got.Event, ": "+err.Error()) {
			t.Errorf("%q: the verdict is %v %q, but the issuer says %v", test.pairs, got.Allowed, got.Event, err)
		}
		if got.Allowed != (test.denied == "") || !strings.Contains(got.Event, test.denied) {
			t.Errorf("%q: the verdict is %v %q, want the reason %q", test.pairs, got.Allowed, got.Event, test.denied)
		}
	}
}

// The policy sees the same lifetime as in the node plugin and the registration authority.
func TestLifetimeWithoutDuration(t *testing.T) {
	for configured, want := range map[string]string{"{}": "24h", "{max: 90m}": "1h30m", "{min: 36h}": "36h", "{default: 30m, max: 1h}": "30m"} {
		path := write(t, "issuers: {default: {duration: "+configured+"}}\npolicy: {validations: [{expression: request.duration == duration('"+want+"')}]}\n")
		if got := evaluate(t, options(path)); !got.Allowed || got.Request.Duration != want {
			t.Errorf("duration: %s: the policy sees another lifetime than %s: %+v", configured, want, got)
		}
	}
}

// Attributes that the node plugin rejects get the same sentence as from it.
func TestInvalidAttributes(t *testing.T) {
	for _, test := range []struct{ want, key, value string }{
		{`"dns-name" is not a volume attribute; dns-names is`, "dns-name", "a.shop"},
		{`duration: "13h0m0s" is longer than 12h0m0s`, "duration", "13h"},
		{`renew-before: "7h30m0s" is more than nine tenths`, "renew-before", "450m"},
		{`issuer: "other" is not an issuer in the plugin's configuration; it has default, web`, "issuer", "other"},
		{`dns-names: "a.${POD}": a $ must begin one of`, "dns-names", "a.${POD}"},
	} {
		got := evaluate(t, options("testdata/values.yaml", test.key, test.value))
		if got.Allowed || !strings.HasPrefix(got.Event, "rpc error: code = InvalidArgument desc = invalid volume: "+test.want) {
			t.Errorf("%s: %s: %+v", test.key, test.value, got)
		}
	}
}

// Values of several files are merged as Helm does, on top of the chart's defaults.
func TestValues(t *testing.T) {
	const open = "policy: {validations: [{expression: 'true'}]}\n"
	for _, test := range []struct {
		what    string
		files   []string
		pairs   []string
		allowed bool
	}{
		{"the default policy", nil, []string{"dns-names", "a.example.com"}, false},
		{"an empty file", []string{""}, []string{"dns-names", "a.shop.svc.cluster.local"}, true},
		{"an own policy", []string{open}, []string{"dns-names", "a.example.com"}, true},
		{"an empty list is the default policy", []string{open, "policy: {validations: []}\n"}, []string{"dns-names", "a.example.com"}, false},
		{"null is the default policy", []string{open, "policy: null\n"}, []string{"dns-names", "a.example.com"}, false},
		{"sections are merged", []string{open, "policy: {allowShortNames: true}\n"}, []string{"dns-names", "a.example.com"}, true},
		{"lists are replaced", []string{open, "policy: {validations: [{expression: 'false'}]}\n"}, nil, false},
		{"a removed issuer", []string{"issuers: {web: {url: 'https://ca.example.com'}, default: null}\n"}, nil, false},
		{"a removed issuer is back", []string{"issuers: {default: null}\n", "issuers: {default: {}}\n"}, nil, true},
		{"the name of the chart's CA", []string{open}, []string{"dns-names", "step-certificates.step-ca"}, false},
		{"the name of another CA", []string{open + "issuers: {default: {url: 'https://ca.example.com'}}\n"}, []string{"dns-names", "ca.example.com"}, false},
		{"the chart's CA is another one", []string{open + "issuers: {default: {url: 'https://ca.example.com'}}\n"}, []string{"dns-names", "step-certificates.step-ca"}, true},
		{"the name of the registration authority", []string{open}, []string{"dns-names", "step-csi-ra.step-ca.svc"}, false},
		{"no registration authority", []string{open + "mode: node\n"}, []string{"dns-names", "step-csi-ra.step-ca.svc"}, true},
		{"a registration authority with another name", []string{open + "fullnameOverride: certs\n"}, []string{"dns-names", "certs-ra.step-ca.svc"}, false},
		{"that of another release", []string{open + "ra: {existing: {release: first}}\n"}, []string{"dns-names", "first-step-csi-ra.step-ca.svc"}, false},
		{"a configuration of the registration authority", []string{"issuers: {default: {url: 'https://ca.example.com', provisioner: {type: jwk, passwordFile: x}}}\nauthority: {names: [ra.example.com]}\n" + open}, []string{"dns-names", "ra.example.com"}, false},
		{"a configuration of a node plugin", []string{"issuers: {default: {url: 'https://ca.example.com', provisioner: {type: jwk, passwordFile: x}}}\n" + open}, []string{"dns-names", "ra.example.com"}, true},
	} {
		o := options("", test.pairs...)
		for _, text := range test.files {
			o.Files = append(o.Files, write(t, text))
		}
		if got := evaluate(t, o); got.Allowed != test.allowed {
			t.Errorf("%s: allowed is %v: %s", test.what, got.Allowed, got.Event)
		}
	}
}

// A mistake in a file never looks like a policy that allows something.
func TestMistakes(t *testing.T) {
	const config = "issuers: {default: {provisioner: {type: jwk, passwordFile: x}}}\n"
	for text, want := range map[string]string{
		"policy: {validations: [{expression: 'pod.nam == \"\"'}]}":            "policy: ERROR: validations[0].expression:1:4: undefined field 'nam'",
		"policy: {validations: [{expression: '1'}]}":                          "policy: validations[0].expression: returns int, but must return bool",
		"issuers: {default: {policy: {validations: [{expression: 'pod.'}]}}}": "issuers.default.policy: ERROR: validations[0].expression:1:5",
		"policy: {validations: [{expression: 'true', mesage: x}]}":            `unknown field "policy.validations[0].mesage"`,
		"issuers: {default: {policy: {validations: [{expresion: 'true'}]}}}":  `unknown field "issuers.default.policy.validations[0].expresion"`,
		"policy: {validation: []}":                                            "policy.validation: the chart has no such value",
		"polcy: {}":                                                           "polcy: the chart has no such value",
		"step-csi: {policy: {}}":                                              "step-csi: the chart has no such value; of a parent chart's values, give only those of this chart",
		"issuers: {web: {polcy: {}}}":                                         "issuers.default.polcy: the chart has no such value",
		"policy: []":                                                          "policy: must have keys below it",
		"policy: {allowShortNames: 'yes'}":                                    "cannot unmarshal string",
		"policy: {}\npolicy: {}":                                              `key "policy" already set`,
		"- 1":                                                                 "cannot unmarshal array",
		"mode: raa":                                                           `mode: "raa" is neither ra nor node`,
		"clusterDomain: ..":                                                   "clusterDomain: ",
		"issuers: {default: null}":                                            "issuers: there is none",
		"issuers: {default: {duration: {max: 1}}}":                            "cannot unmarshal number",
		"issuers: {default: {duration: {max: 1h, min: 2h}}}":                  "issuers.default.duration.min: 2h0m0s is longer",
		"policy: {allowSubjectFields: [organizations]}":                       "no validation mentions request.organizations",
		config + "policy: {validatons: []}":                                   `unknown field "policy.validatons"`,
		config + "polcy: {}":                                                  `unknown field "polcy"`,
		"issuers: {default: {provisioner: {type: ra, tokenFile: x}}}\npolicy: {}": "the registration authority has the policy: give its configuration file instead",
	} {
		path := write(t, text)
		_, err := Evaluate(t.Context(), options(path), strings.NewReader(""))
		if err == nil || !strings.HasPrefix(err.Error(), path+": ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%s:\n%v, want %q", text, err, want)
		}
	}
	two := options(write(t, config))
	two.Files = append(two.Files, write(t, ""))
	if _, err := Evaluate(t.Context(), two, strings.NewReader("")); err == nil || !strings.Contains(err.Error(), "give it alone") {
		t.Errorf("two configuration files: %v", err)
	}
	for _, pod := range []issuer.Pod{{Namespace: "Shop", UID: uid}, {Namespace: "shop", ServiceAccount: "a b", UID: uid}, {}} {
		if _, err := Evaluate(t.Context(), Options{Pod: pod}, strings.NewReader("")); err == nil {
			t.Errorf("%+v is accepted as a pod", pod)
		}
	}
}

// With manifests, flags take precedence, and a file without a volume is a mistake.
func TestPodFile(t *testing.T) {
	o := options("")
	o.PodFile = write(t, "kind: Pod\nmetadata: {name: a, namespace: b}\nspec: {serviceAccountName: c, volumes: [{name: tls, csi: {driver: csi.step-ca.io}}]}\n")
	want := issuer.Pod{Namespace: "shop", Name: "a", UID: uid, ServiceAccount: "orders", Node: "node"}
	if got := evaluate(t, o); got.Pod != want || !got.Allowed {
		t.Errorf("the pod is %+v, want %+v", got.Pod, want)
	}
	o.Pod = issuer.Pod{UID: uid}
	want.Namespace, want.ServiceAccount = "b", "c"
	if got := evaluate(t, o); got.Pod != want {
		t.Errorf("the pod is %+v, want %+v", got.Pod, want)
	}
	o.Files = []string{write(t, "driverName: other.example.com\n")}
	if _, err := Evaluate(t.Context(), o, strings.NewReader("")); err == nil || !strings.Contains(err.Error(), "no pod in it has a volume of the driver other.example.com") {
		t.Errorf("without a volume: %v", err)
	}
	// Fields of custom resources do not matter, but those of pods must be right.
	o = options("")
	for text, want := range map[string]string{
		"kind: Pod\nmetadata: {name: a}\nspec: {volumes: [{name: tls, csi: {driver: csi.step-ca.io, volumeAttributes: {spiffe: false}}}]}\n": "cannot unmarshal bool",
		"kind: Database\nspec: {volumes: 3}\n": "no pod in it has a volume",
		"kind: Pod\n  - x":                     "yaml",
	} {
		o.PodFile = write(t, text)
		if _, err := Evaluate(t.Context(), o, strings.NewReader("")); err == nil || !strings.HasPrefix(err.Error(), o.PodFile+": ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	// The kubelet overwrites its own keys: an attribute cannot choose the identity.
	o = options("", "csi.storage.k8s.io/pod.namespace", "kube-system")
	if got := evaluate(t, o); got.Pod.Namespace != "shop" {
		t.Errorf("the pod is %+v", got.Pod)
	}
}

// The standard input can be each of the files, but not both.
func TestStandardInput(t *testing.T) {
	o := options("-", "dns-names", "a.example.com")
	all, err := Evaluate(t.Context(), o, strings.NewReader("policy: {validations: [{expression: 'true'}]}"))
	if err != nil || !all[0].Allowed {
		t.Errorf("%+v: %v", all, err)
	}
	o.PodFile = "-"
	if _, err := Evaluate(t.Context(), o, strings.NewReader("")); err == nil || !strings.Contains(err.Error(), "only one") {
		t.Error(err)
	}
}

// A canceled evaluation is an error, not a denial.
func TestCanceled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Evaluate(ctx, options("", "dns-names", "a.example.com"), strings.NewReader("")); err == nil {
		t.Error("there is a verdict")
	}
}
