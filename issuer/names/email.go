package names

import (
	"fmt"
	"net/mail"
	"strings"
)

// EmailAddress is a bare e-mail address in lower-case ASCII.
type EmailAddress struct{ address string }

// String implements fmt.Stringer.
func (a EmailAddress) String() string { return a.address }

// ParseEmailAddress rejects upper case also before the @, because nearly all mail
// servers ignore case there. 254 bytes is the limit of RFC 5321.
func ParseEmailAddress(text string) (EmailAddress, error) {
	address, err := mail.ParseAddress(text)
	if err != nil || address.Address != text || !isPlainASCII(text) || strings.ToLower(text) != text || len(text) > MaxLength {
		return EmailAddress{}, fmt.Errorf("%s is not an e-mail address in lower-case ASCII with at most %d bytes, such as admin@example.com", Quote(text), MaxLength)
	}
	_, domain, _ := strings.Cut(text, "@")
	if host, err := parseHostName(domain); err != nil || host != domain {
		return EmailAddress{}, fmt.Errorf("%s: the part after the @ must be a DNS name", Quote(text))
	}
	return EmailAddress{text}, nil
}
