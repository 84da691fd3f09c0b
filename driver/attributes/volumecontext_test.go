package attributes_test

import (
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/flexstack/step-csi/driver/attributes"
)

func volumeContext() map[string]string {
	return map[string]string{
		"csi.storage.k8s.io/ephemeral":             "true",
		"csi.storage.k8s.io/pod.name":              "web-0",
		"csi.storage.k8s.io/pod.namespace":         "shop",
		"csi.storage.k8s.io/pod.uid":               pod.UID,
		"csi.storage.k8s.io/serviceAccount.name":   "front",
		"csi.storage.k8s.io/serviceAccount.tokens": `{"step-csi":{"token":"s3cret"}}`,
		"csi.storage.k8s.io/of-a-later-version":    "x",
		"service-names":                            "web",
	}
}

func TestIdentity(t *testing.T) {
	given := volumeContext()
	got, user, err := attributes.Identity(given, "node-1")
	if err != nil || got != pod {
		t.Errorf("%+v, %v", got, err)
	}
	if !maps.Equal(user, map[string]string{"service-names": "web"}) {
		t.Errorf("the user's attributes: %q", user)
	}
	if !maps.Equal(given, volumeContext()) {
		t.Errorf("the function changed the request: %q", given)
	}
}

func TestInvalidIdentity(t *testing.T) {
	const prefix = "csi.storage.k8s.io/"
	for _, c := range []struct{ key, value, wrong string }{
		{"pod.name", "", "pod.name is missing: the CSIDriver object needs podInfoOnMount: true"},
		{"pod.namespace", "", "podInfoOnMount: true"},
		{"pod.uid", "", "podInfoOnMount: true"},
		{"serviceAccount.name", "", "pod shop/web-0 has no service account, and so no token that proves its identity, because it is a static pod: run it as a Deployment or DaemonSet"},
		{"pod.name", "Web", `csi.storage.k8s.io/pod.name: "Web" is not a Kubernetes name`},
		{"pod.name", strings.Repeat("a", 253), ""},
		{"pod.name", strings.Repeat("a", 254), "is not a Kubernetes name"},
		{"pod.name", "a.b-c", ""},
		{"pod.namespace", "a.b", "is not a Kubernetes name"},
		{"pod.namespace", "shop/sa/root", "is not a Kubernetes name"},
		{"pod.uid", "a b", "is not a Kubernetes name"},
		{"pod.uid", "d41d8cd98f00b204e9800998ecf8427e", ""}, // the UID of a static pod
		{"serviceAccount.name", "a,b", "is not a Kubernetes name"},
		{"serviceAccount.name", "../x", "is not a Kubernetes name"},
		{"serviceAccount.name", "a\n", "is not a Kubernetes name"},
		{"ephemeral", "false", `ephemeral is "false", not "true"`},
		{"ephemeral", "", "supports only inline volumes, written in the pod's spec as volumes: [{name: tls, csi: {driver: csi.step-ca.io, readOnly: true}}]"},
	} {
		given := volumeContext()
		given[prefix+c.key] = c.value
		_, user, err := attributes.Identity(given, "node-1")
		if c.wrong == "" {
			if err != nil {
				t.Errorf("%s=%q: %v", c.key, c.value, err)
			}
			continue
		}
		wantError(t, c.key+"="+c.value, err, c.wrong)
		if user != nil || err != nil && strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s=%q: %q, %v", c.key, c.value, user, err)
		}
	}
}

// Without podInfoOnMount, the kubelet adds no keys, not even ephemeral.
func TestIdentityWithoutPodInfo(t *testing.T) {
	_, _, err := attributes.Identity(map[string]string{"service-names": "web"}, "node-1")
	wantError(t, "no pod info", err, "podInfoOnMount: true")
	given := volumeContext()
	delete(given, "csi.storage.k8s.io/serviceAccount.name")
	_, _, err = attributes.Identity(given, "node-1") // not a static pod, which has the key
	wantError(t, "no service account", err, "podInfoOnMount: true")
	_, _, err = attributes.Identity(nil, "")
	wantError(t, "nil", err, "podInfoOnMount: true")
}

const tokens = "csi.storage.k8s.io/serviceAccount.tokens"

func TestToken(t *testing.T) {
	text := func(token string) string {
		return fmt.Sprintf(`{"step-csi": {"token": %q, "expirationTimestamp": "2030-01-02T03:04:05Z"}, "vault": {"token": "another"}}`, token)
	}
	expiry := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	for name, test := range map[string]struct {
		secrets, context map[string]string
		want             string
	}{
		"secrets":                           {map[string]string{tokens: text("s")}, nil, "s"},
		"volume context":                    {nil, map[string]string{tokens: text("c")}, "c"},
		"a user's beside the kubelet's":     {map[string]string{tokens: text("s")}, map[string]string{tokens: text("forged")}, "s"},
		"a user's instead of the kubelet's": {map[string]string{tokens: `{}`}, map[string]string{tokens: text("forged")}, ""},
		"none":                              {nil, nil, ""},
		"for others only":                   {map[string]string{tokens: `{"vault": {"token": "another"}}`}, nil, ""},
	} {
		got, err := attributes.Token(test.secrets, test.context, "step-csi")
		if err != nil || got.Reveal() != test.want {
			t.Errorf("%s: %q, %v", name, got.Reveal(), err)
		}
		if want := test.want != ""; got.ValidAt(expiry.Add(-time.Second)) != want || got.ValidAt(expiry) {
			t.Errorf("%s: the token's validity is wrong", name)
		}
	}
	if _, err := attributes.Token(map[string]string{tokens: "eyJhbGciOi"}, nil, "step-csi"); err == nil || strings.Contains(err.Error(), "eyJ") {
		t.Errorf("an invalid value: %v", err)
	}
}

func TestTokenDoesNotPrint(t *testing.T) {
	token, err := attributes.Token(map[string]string{tokens: `{"step-csi": {"token": "very-secret"}}`}, nil, "step-csi")
	if err != nil || token.Reveal() != "very-secret" {
		t.Fatal(err)
	}
	if text := fmt.Sprintf("%v %+v %#v %s %q %d", token, token, &token, token, token, struct{ T any }{token}); strings.Contains(text, "secret") {
		t.Error(text)
	}
}
