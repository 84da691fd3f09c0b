package server

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/flexstack/step-csi/issuer"
)

// clockSkew is how much longer than until its expiry a token is shown to the API
// server, whose clock decides.
const clockSkew = time.Minute

// claims are what a token says of itself. Nobody has verified them: they only tell
// whether the API server could accept the token of a node plugin.
type claims struct {
	Issuer     string   `json:"iss"`
	Subject    string   `json:"sub"`
	Audience   audience `json:"aud"`
	Expiry     int64    `json:"exp"`
	Kubernetes struct {
		Namespace string `json:"namespace"`
		Account   named  `json:"serviceaccount"`
		Pod       named  `json:"pod"`
	} `json:"kubernetes.io"`
}

type named struct {
	Name string `json:"name"`
	UID  string `json:"uid"`
}

// audience is one string or several. See
// https://datatracker.ietf.org/doc/html/rfc7519#section-4.1.3.
type audience []string

// UnmarshalJSON implements json.Unmarshaler.
func (a *audience) UnmarshalJSON(text []byte) error {
	var one string
	if json.Unmarshal(text, &one) == nil {
		*a = audience{one}
		return nil
	}
	return json.Unmarshal(text, (*[]string)(a))
}

// readClaims reads the claims of a JSON Web Token, without its signature. The errors
// contain nothing of the token.
func readClaims(token issuer.Token) (claims, error) {
	parts := strings.Split(token.Reveal(), ".")
	if len(parts) != 3 {
		return claims{}, errors.New("it is not a JSON Web Token")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return claims{}, errors.New("it is not a JSON Web Token")
	}
	var c claims
	if json.Unmarshal(payload, &c) != nil {
		return claims{}, errors.New("it is not a JSON Web Token of a service account")
	}
	return c, nil
}

// IssuerOf returns the issuer that a token names, or "" if the text is no token. The
// server's own token has the same issuer as those of its callers.
func IssuerOf(token string) string {
	c, _ := readClaims(issuer.NewToken(strings.TrimSpace(token), time.Time{}))
	return c.Issuer
}

// check tells whether the claims are those of a node plugin's token.
func (c claims) check(plugin ServiceAccount, now time.Time) error {
	switch {
	case c.Subject != "system:serviceaccount:"+plugin.Namespace+":"+plugin.Name:
		return fmt.Errorf("%w: the node plugins are %s", errNotPlugin, plugin)
	case c.Kubernetes.Namespace != plugin.Namespace || c.Kubernetes.Account.Name != plugin.Name:
		return fmt.Errorf("%w: it is not a token of the service account %s", ErrRejected, plugin)
	case c.Kubernetes.Pod.Name == "" || c.Kubernetes.Pod.UID == "":
		return fmt.Errorf("%w: it is not bound to a pod", ErrRejected)
	case !slices.Contains(c.Audience, issuer.TokenAudience):
		return fmt.Errorf("%w: it is not for the audience %s", ErrRejected, issuer.TokenAudience)
	case c.expiry().Add(clockSkew).Before(now):
		return fmt.Errorf("%w: it has expired at %s, and the clock of the registration authority shows %s", ErrRejected,
			c.expiry().UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return nil
}

func (c claims) expiry() time.Time { return time.Unix(c.Expiry, 0) }
