package issuer

import (
	"fmt"
	"time"
)

// TokenAudience is the audience of the tokens by which the registration authority
// identifies pods and node plugins.
const TokenAudience = "step-csi"

// Token is a service-account token that is bound to a pod. It does not print.
type Token struct {
	text   string
	expiry time.Time
}

// NewToken returns a Token. The expiry is zero if it is unknown.
func NewToken(text string, expiry time.Time) Token { return Token{text, expiry} }

// Reveal returns the token itself, to send it.
func (t Token) Reveal() string { return t.text }

// ValidAt tells whether there is a token that has not expired at the time.
func (t Token) ValidAt(now time.Time) bool {
	return t.text != "" && (t.expiry.IsZero() || now.Before(t.expiry))
}

// Missing says why there is no valid token at the time, and what to change.
func (t Token) Missing(now time.Time) string {
	if t.text == "" {
		return "the kubelet has passed no token for the audience " + TokenAudience + ": the CSIDriver object needs tokenRequests for it " +
			"(the chart sets them with mode: ra)"
	}
	return fmt.Sprintf("the last token expired %s ago: the kubelet brings a new one within two minutes, if the CSIDriver object has "+
		"requiresRepublish: true and the clocks of this node and the API server agree", now.Sub(t.expiry).Round(time.Second))
}

// NewerThan tells whether t expires later than other.
func (t Token) NewerThan(other Token) bool {
	return t.text != "" && (other.text == "" || t.expiry.After(other.expiry))
}

// Format keeps the token out of logs and error messages, whatever the verb.
func (Token) Format(s fmt.State, _ rune) { _, _ = s.Write([]byte("[token]")) }

// MarshalJSON keeps the token out of structured logs and records.
func (Token) MarshalJSON() ([]byte, error) { return []byte(`"[token]"`), nil }

// MarshalLog keeps the token out of what logr prints.
func (Token) MarshalLog() any { return "[token]" }
