package issuer

import (
	"fmt"
	"time"
)

// TokenAudience is the audience of the tokens that pods and node plugins show to
// the registration authority.
const TokenAudience = "step-csi"

// Token is a service-account token that is bound to a pod: whoever has it can
// show that the kubelet of the pod's node gave it away. It does not print.
type Token struct {
	text   string
	expiry time.Time
}

// NewToken is for a token as the kubelet or a client sends it. The expiry may
// be zero where it is not known.
func NewToken(text string, expiry time.Time) Token { return Token{text, expiry} }

// Reveal returns the token itself. It is for the one who sends it on.
func (t Token) Reveal() string { return t.text }

// ValidAt tells whether there is a token, and it has not expired by then.
func (t Token) ValidAt(now time.Time) bool {
	return t.text != "" && (t.expiry.IsZero() || now.Before(t.expiry))
}

// NewerThan tells whether it lives longer than the other.
func (t Token) NewerThan(other Token) bool {
	return t.text != "" && (other.text == "" || t.expiry.After(other.expiry))
}

// Format keeps the token out of logs and error messages, whatever the verb.
func (Token) Format(s fmt.State, _ rune) { _, _ = s.Write([]byte("[token]")) }

// MarshalJSON keeps the token out of structured logs and records.
func (Token) MarshalJSON() ([]byte, error) { return []byte(`"[token]"`), nil }

// MarshalLog keeps the token out of what logr prints.
func (Token) MarshalLog() any { return "[token]" }
