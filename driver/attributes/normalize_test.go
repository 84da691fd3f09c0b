package attributes_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"strings"
	"testing"

	"github.com/flexstack/step-csi/driver/attributes"
)

func TestNormalize(t *testing.T) {
	for _, test := range []struct{ key, value, want string }{
		{"dns-names", " b.shop,a.shop ,b.shop,\ta.shop", "b.shop,a.shop"},
		{"service-names", "${POD_NAME}, web", "${POD_NAME},web"},
		{"ip-sans", "10.0.0.1,10.0.0.1", "10.0.0.1"},
		{"uri-sans", strings.Repeat("https://a/,", 99) + "https://a/", "https://a/"},
		{"uri-sans", strings.Repeat("https://a/,", 100) + "https://a/", strings.Repeat("https://a/,", 100) + "https://a/"},
		{"email-sans", " a@example.com", "a@example.com"},
		{"dns-names", "a.shop,,a.shop", "a.shop,,a.shop"}, // Parse rejects these
		{"dns-names", " ", " "},
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
