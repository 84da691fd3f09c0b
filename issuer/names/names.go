// Package names is the one grammar for the names in certificates and requests.
//
// Each type has one Parse function, and only that makes values of it. (The types
// have fields of different names, so Go does not convert one to another.) A value
// has one spelling, which String returns, so two values are the same name exactly
// if they are equal, and a policy can compare them as plain strings. A Parse
// function either returns the name in this spelling or says how to write it. Its
// errors quote the text; the caller adds the attribute or field that has it.
//
// The grammar rejects every name that two programs may read differently, such as
// 10.1, which C libraries take for the address 10.0.0.1. Whether a pod may have
// a name is not decided here but by the issuer's policy.
package names

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	// MaxNames limits the names of all types in one certificate. Let's Encrypt
	// has the same limit.
	MaxNames = 100
	// MaxSize limits these names together, in bytes: peers read them in every
	// TLS handshake.
	MaxSize = 8 << 10
	// MaxLength is the length in bytes of the longest name that is not a URI.
	MaxLength = 254
)

// ParseAll parses each text and stops at the first error.
func ParseAll[T any](parse func(string) (T, error), texts ...string) ([]T, error) {
	var all []T
	for _, text := range texts {
		value, err := parse(text)
		if err != nil {
			return nil, err
		}
		all = append(all, value)
	}
	return all, nil
}

// Exactly returns a Parse function that rejects other spellings than the one that
// parse returns.
func Exactly[T fmt.Stringer](parse func(string) (T, error)) func(string) (T, error) {
	return func(text string) (T, error) {
		value, err := parse(text)
		if err == nil && value.String() != text {
			err = fmt.Errorf("%s: write it as %s", Quote(text), Quote(value.String()))
		}
		return value, err
	}
}

// Must returns the value and panics if there is an error. It is for names that
// are written in source code.
func Must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

// Texts returns the text of each value.
func Texts[T fmt.Stringer](values []T) []string {
	texts := make([]string, len(values))
	for i, value := range values {
		texts[i] = value.String()
	}
	return texts
}

// CheckTotal enforces the limits on all names of one certificate together.
func CheckTotal(texts []string) error {
	size := 0
	for _, text := range texts {
		size += len(text)
	}
	switch {
	case len(texts) > MaxNames:
		return fmt.Errorf("%d names are too many for one certificate; the limit is %d", len(texts), MaxNames)
	case size > MaxSize:
		return fmt.Errorf("names of %d bytes in total are too long for one certificate; the limit is %d bytes", size, MaxSize)
	}
	return nil
}

// Quote returns a text in quotes for errors, shortened, and with escapes for what
// could spoil a log or a terminal.
func Quote(text string) string {
	const limit = 80
	if len(text) > limit {
		return fmt.Sprintf("%q…", text[:limit])
	}
	return fmt.Sprintf("%q", text)
}

// IsPrintable reports whether the text is UTF-8 and all of it prints. The only
// blank in it is the ASCII space.
func IsPrintable(text string) bool {
	return utf8.ValidString(text) && !strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) })
}

// isPlainASCII reports whether the text is printable ASCII without blanks.
func isPlainASCII(text string) bool {
	return !strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' })
}
