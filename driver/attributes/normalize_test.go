package attributes_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/issuer"
)

func TestNormalize(t *testing.T) {
	for _, test := range []struct{ key, value, want string }{
		{"dns-names", " b.shop,a.shop ,b.shop,\ta.shop", "b.shop,a.shop"},
		{"service-names", "${POD_NAME}, web", "${POD_NAME},web"},
		{"service-names", "web" + strings.Repeat(" ", 7500), "web"},
		{"ip-sans", "10.0.0.1,10.0.0.1", "10.0.0.1"},
		{"file-mode", strings.Repeat("0", 7500) + "440", "0440"},
		{"file-mode", "440", "0440"},
		{"privatekey-mode", "00600", "0600"},
		{"file-mode", "0777", "0777"}, // Parse rejects it
		{"uri-sans", strings.Repeat("https://a/,", 99) + "https://a/", "https://a/"},
		{"uri-sans", strings.Repeat("https://a/,", 100) + "https://a/", strings.Repeat("https://a/,", 100) + "https://a/"},
		{"email-sans", " a@example.com", "a@example.com"},
		{"dns-names", "a.shop,,a.shop", "a.shop,,a.shop"}, // Parse rejects these
		{"dns-names", " ", " "},
		{"organizations", " Acme GmbH,Acme GmbH ,Shop", "Acme GmbH,Shop"},
		{"template-data", `{ "b": 1.0, "a": [ ] }`, `{"a":[],"b":1}`},
		{"template-data", `{"n":1e15}`, `{"n":1e15}`}, // would become longer
		{"template-data", ` {"a": 1, "a": 1}`, ` {"a": 1, "a": 1}`},
		{"duration", "60m", "1h0m0s"},
		{"renew-before", "0.5h", "30m0s"},
		{"duration", "1d", "1d"},
		{"common-name", " a, a", " a, a"}, // not a list
		{"certificate-file", "a,a", "a,a"},
		{"unknown", "a,a", "a,a"},
	} {
		got := attributes.Normalize(map[string]string{test.key: test.value})
		if want := map[string]string{test.key: test.want}; !maps.Equal(got, want) {
			t.Errorf("%s=%.80q: %q", test.key, test.value, got)
		}
	}
}

// checkNormalize checks that the normal form has the same meaning.
func checkNormalize(t *testing.T, values map[string]string, parse func(map[string]string) (attributes.Attributes, error)) {
	t.Helper()
	normal := attributes.Normalize(values)
	if again := attributes.Normalize(normal); !maps.Equal(again, normal) {
		t.Errorf("%q is normalized to %q, and then to %q", values, normal, again)
	}
	want, err := parse(values)
	if size, _ := json.Marshal(normal); err != nil || len(size) > 8<<10 {
		return // the normal form of a duration is longer
	}
	if got, err := parse(normal); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%q\nmeans   %+v\nbut %q\nmeans   %+v, %v", values, want, normal, got, err)
	}
}

func TestNormalizeKeepsTheMeaning(t *testing.T) {
	parse := func(values map[string]string) (attributes.Attributes, error) {
		return attributes.Parse(values, pod, "", config())
	}
	for _, c := range nameCases {
		checkNormalize(t, map[string]string{c.key: c.value}, parse)
	}
	for _, c := range otherCases {
		values := fullRequest()
		values[c.key] = c.value
		checkNormalize(t, values, parse)
	}
}

// Without a configured default, a pod that sets no duration requests none, and the issuer
// decides. Each configured limit holds by itself.
func TestDurationWithoutConfiguredLifetimes(t *testing.T) {
	for _, test := range []struct {
		lifetimes   issuer.Lifetimes
		duration    string
		renewBefore string
		want        time.Duration
		wrong       string
	}{
		{issuer.Lifetimes{}, "", "", 0, ""},
		{issuer.Lifetimes{}, "", "100h", 0, ""},
		{issuer.Lifetimes{}, "1000h", "", 1000 * time.Hour, ""},
		{issuer.Lifetimes{}, "1h", "1h", 0, "not shorter than the duration of 1h0m0s"},
		{issuer.Lifetimes{Max: time.Hour}, "", "", 0, ""},
		{issuer.Lifetimes{Max: time.Hour}, "61m", "", 0, "longer than 1h0m0s, the maximum in the plugin's configuration"},
		{issuer.Lifetimes{Min: time.Hour}, "59m", "", 0, "shorter than 1h0m0s, the minimum in the plugin's configuration"},
		{issuer.Lifetimes{Min: time.Hour}, "100h", "", 100 * time.Hour, ""},
		{issuer.Lifetimes{Default: 3 * time.Hour}, "", "", 3 * time.Hour, ""},
	} {
		c := config()
		c.Issuers = map[string]issuer.Lifetimes{"default": test.lifetimes}
		values := map[string]string{"duration": test.duration, "renew-before": test.renewBefore}
		maps.DeleteFunc(values, func(_, value string) bool { return value == "" })
		got, err := attributes.Parse(values, pod, "", c)
		if got.Request.Duration != test.want || (err == nil) != (test.wrong == "") || err != nil && !strings.Contains(err.Error(), test.wrong) {
			t.Errorf("%+v: %s, %v", test, got.Request.Duration, err)
		}
	}
	values := map[string]string{"renew-before": "7h30m"}
	got, err := attributes.Parse(values, pod, "", attributes.Config{
		ClusterDomain: config().ClusterDomain, TrustDomain: config().TrustDomain, Issuers: map[string]issuer.Lifetimes{"default": {}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for usual, wrong := range map[time.Duration]bool{0: false, 8 * time.Hour: true, 24 * time.Hour: false} {
		if err := got.CheckRenewBefore(usual); (err != nil) != wrong {
			t.Errorf("a default of %s: %v", usual, err)
		}
	}
}

func TestRenewBefore(t *testing.T) {
	for value, wrong := range map[string]string{
		"9m":     "",
		"9m0.1s": `renew-before: "9m0.1s" is more than nine tenths of the duration of 10m0s; use at most 9m0s`,
		"9m59s":  "use at most 9m0s",
		"":       "",
	} {
		values := map[string]string{"duration": "10m", "renew-before": value}
		maps.DeleteFunc(values, func(_, value string) bool { return value == "" })
		got, err := attributes.Parse(values, pod, "", config())
		if err != nil {
			t.Fatal(err)
		}
		if err := got.CheckRenewBefore(0); wrong == "" && err != nil || wrong != "" && !strings.Contains(fmt.Sprint(err), wrong) {
			t.Errorf("renew-before %q: %v", value, err)
		}
	}
}
