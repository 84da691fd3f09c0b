package attributes

import (
	"fmt"
	"slices"
	"strings"
)

func setBool(field func(*parser) *bool) func(*parser, string) error {
	return func(p *parser, value string) error {
		*field(p) = value == "true"
		return oneOf(value, "true", "false")
	}
}

func oneOf[T ~string](value T, allowed ...T) error {
	if slices.Contains(allowed, value) {
		return nil
	}
	texts := make([]string, len(allowed))
	for i, a := range allowed {
		texts[i] = string(a)
	}
	return fmt.Errorf("%s is none of %s", quote(string(value)), strings.Join(texts, ", "))
}

// quote shows a value without letting it spoil a log or a terminal.
func quote(value string) string {
	const most = 80
	if len(value) > most {
		return fmt.Sprintf("%q…", value[:most])
	}
	return fmt.Sprintf("%q", value)
}
