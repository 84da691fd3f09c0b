package attributes

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
)

// Normalize returns the attributes in a form that the driver records and compares: lists
// without blanks around the commas and without duplicates, JSON without blanks and with sorted
// keys, durations as Go writes them, and modes without more than one zero in front.
// Parse takes both forms for the same volume. Normalize leaves invalid values to Parse.
func Normalize(values map[string]string) map[string]string {
	normal := make(map[string]string, len(values))
	for key, value := range values {
		switch key {
		case "service-names", "dns-names", "ip-sans", "uri-sans", "email-sans",
			"organizations", "organizational-units", "countries", "provinces", "localities", "street-addresses", "postal-codes":
			value = normalizeList(value)
		case "template-data":
			// Numbers such as 1e9 become longer, but the record has a limited size.
			if data, err := issuer.ParseTemplateData(value); err == nil && len(data.String()) < len(value) {
				value = data.String()
			}
		case "duration", "renew-before":
			if d, err := time.ParseDuration(value); err == nil {
				value = d.String()
			}
		case "file-mode", "privatekey-mode":
			if mode, err := parseMode(value); err == nil {
				value = fmt.Sprintf("%#o", mode)
			}
		}
		normal[key] = value
	}
	return normal
}

// normalizeList keeps the order: the first DNS name is the default common name.
func normalizeList(value string) string {
	parts := strings.Split(value, ",")
	if len(parts) > names.MaxNames {
		return value // Parse rejects it
	}
	for i, part := range parts {
		parts[i] = strings.TrimSpace(part)
	}
	if slices.Contains(parts, "") {
		return value // Parse rejects it
	}
	return strings.Join(unique(parts), ",")
}
