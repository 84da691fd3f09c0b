package attributes

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxCommonName is ub-common-name of RFC 5280, in bytes.
const maxCommonName = 64

// setCommonName leaves it to the policy what the name may be.
func (p *parser) setCommonName(value string) error {
	name, err := p.expand(value)
	switch {
	case err != nil:
		return err
	case name == "" || len(name) > maxCommonName:
		return fmt.Errorf("%s does not have 1 to %d bytes (RFC 5280)", quote(name), maxCommonName)
	case !isPrintable(name):
		return fmt.Errorf("%s has characters that do not print", quote(name))
	case strings.TrimSpace(name) != name:
		return fmt.Errorf("%s: leave out the blanks at the ends", quote(name))
	}
	p.result.Request.CommonName = name
	return nil
}

func isPrintable(text string) bool {
	return utf8.ValidString(text) && !strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) })
}

// defaultCommonName is the first DNS name that is short enough. Without one it
// is the pod's name, if that looks like one which a controller has made: a pod
// may also be named postgres, or admin.example.com, and servers which map the
// common name to a user or a host must not take it for that one.
func (p *parser) defaultCommonName() string {
	for _, name := range p.result.Request.DNSNames {
		if len(name) <= maxCommonName {
			return name
		}
	}
	if len(p.pod.Name) <= maxCommonName && strings.Contains(p.pod.Name, "-") && !strings.Contains(p.pod.Name, ".") {
		return p.pod.Name
	}
	return p.pod.UID
}
