package attributes_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/flexstack/step-csi/driver/attributes"
)

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
			t.Errorf("%s: valid at the wrong time", name)
		}
	}
	if _, err := attributes.Token(map[string]string{tokens: "eyJhbGciOi"}, nil, "step-csi"); err == nil || strings.Contains(err.Error(), "eyJ") {
		t.Errorf("rubbish: %v", err)
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
