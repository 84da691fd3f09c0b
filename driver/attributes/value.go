package attributes

import (
	"fmt"
	"slices"
	"strings"

	"github.com/flexstack/step-csi/issuer/names"
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
	return fmt.Errorf("%s is not one of %s", names.Quote(string(value)), strings.Join(texts, ", "))
}
