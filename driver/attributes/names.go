package attributes

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strings"

	"github.com/flexstack/step-csi/issuer"
)

const (
	// maxNames bounds the names in one certificate. Public CAs allow as many.
	maxNames = 100
	// maxNamesSize bounds them in bytes: peers read them in each handshake.
	maxNamesSize = 8 << 10
)

// finishNames puts the names together.
func (p *parser) finishNames() error {
	r := &p.result.Request
	services, err := p.serviceNames()
	if err != nil {
		return err
	}
	r.DNSNames = unique(append(p.dns, services...))
	if p.spiffe {
		id, err := p.spiffeID()
		if err != nil {
			return err
		}
		r.URIs = unique(append([]*url.URL{id}, r.URIs...))
	}
	if r.CommonName == "" {
		r.CommonName = p.defaultCommonName()
	}
	return checkNames(*r)
}

// checkNames holds what is to be said about all names together.
func checkNames(r issuer.Request) error {
	all := names(r)
	size := len(strings.Join(all, ""))
	switch {
	case len(all) == 0:
		return errors.New(`spiffe: "false" leaves the certificate without a name: give service-names or dns-names, or leave out spiffe`)
	case len(all) > maxNames:
		return fmt.Errorf("%d names are too many for one certificate; at most %d are possible", len(all), maxNames)
	case size > maxNamesSize:
		return fmt.Errorf("names of %d bytes are too many for one certificate; at most %d are possible", size, maxNamesSize)
	}
	return nil
}

// names are all names of the certificate.
func names(r issuer.Request) (all []string) {
	all = append(all, r.DNSNames...)
	all = append(all, texts(r.IPAddresses, netip.Addr.String)...)
	all = append(all, texts(r.URIs, (*url.URL).String)...)
	return append(all, r.EmailAddresses...)
}

func texts[T any](values []T, text func(T) string) []string {
	all := make([]string, len(values))
	for i, v := range values {
		all[i] = text(v)
	}
	return all
}

// parseList splits, expands and parses a value, and drops what comes twice.
func parseList[T any](p *parser, value string, parse func(string) (T, error)) ([]T, error) {
	parts, err := p.list(value)
	if err != nil {
		return nil, err
	}
	var all []T
	for _, part := range parts {
		v, err := parse(part)
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return unique(all), nil
}

// unique keeps the first of those that print the same.
func unique[T any](all []T) (result []T) {
	seen := map[string]bool{}
	for _, v := range all {
		if text := fmt.Sprint(v); !seen[text] {
			seen[text] = true
			result = append(result, v)
		}
	}
	return result
}
