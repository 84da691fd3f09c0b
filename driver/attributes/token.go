package attributes

import (
	"encoding/json"
	"errors"
	"time"

	"github.com/flexstack/step-csi/issuer"
)

// tokensKey holds the pod's service-account tokens, by audience.
// See https://kubernetes-csi.github.io/docs/token-requests.html.
const tokensKey = kubelets + "serviceAccount.tokens"

// Token returns the pod's service-account token for the audience, or the zero
// value if there is none. The kubelet passes tokens in the secrets of a request,
// before Kubernetes 1.35 in the volume's context. If the secrets have tokens,
// those in the context are ignored: a user may have written them.
func Token(secrets, volumeContext map[string]string, audience string) (issuer.Token, error) {
	text, given := secrets[tokensKey]
	if !given {
		text = volumeContext[tokensKey]
	}
	if text == "" {
		return issuer.Token{}, nil
	}
	var tokens map[string]struct {
		Token               string    `json:"token"`
		ExpirationTimestamp time.Time `json:"expirationTimestamp"`
	}
	if err := json.Unmarshal([]byte(text), &tokens); err != nil {
		// The error of the JSON parser is left out: it may quote a token.
		return issuer.Token{}, errors.New(tokensKey + " is not the JSON that the kubelet writes")
	}
	token := tokens[audience]
	return issuer.NewToken(token.Token, token.ExpirationTimestamp), nil
}
