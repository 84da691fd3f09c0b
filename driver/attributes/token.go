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

// Token takes the pod's service-account token for the audience out of a
// request: out of the secrets, or, from kubelets before 1.35, out of the volume's
// context. Where the kubelet puts it into the secrets, whatever is in the context
// was written by a user. It is the zero value if there is none.
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
		// Not the error itself: it may quote what it could not read.
		return issuer.Token{}, errors.New(tokensKey + " is not what the kubelet writes")
	}
	token := tokens[audience]
	return issuer.NewToken(token.Token, token.ExpirationTimestamp), nil
}
