package attributes

import (
	"fmt"
	"net/mail"
	"strings"
)

func (p *parser) setEmailAddresses(value string) (err error) {
	p.result.Request.EmailAddresses, err = parseList(p, value, parseEmailAddress)
	return err
}

// parseEmailAddress accepts a bare address in lower case: nearly everybody
// takes the upper case of the part before the @ for the same mailbox, too.
func parseEmailAddress(text string) (string, error) {
	address, err := mail.ParseAddress(text)
	if err != nil || address.Address != text || !isPlainASCII(text) || strings.ToLower(text) != text {
		return "", fmt.Errorf("%s is not an e-mail address in lower case and ASCII, such as admin@example.com", quote(text))
	}
	_, domain, _ := strings.Cut(text, "@")
	if _, err := parseHost(domain); err != nil {
		return "", fmt.Errorf("%s: what follows the @ must be a DNS name", quote(text))
	}
	return text, nil
}
