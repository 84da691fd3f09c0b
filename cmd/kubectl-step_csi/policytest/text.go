package policytest

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/flexstack/step-csi/issuer/names"
)

// Print writes the verdicts for people.
func Print(w io.Writer, verdicts []Verdict) error {
	var all strings.Builder
	for i, v := range verdicts {
		if i > 0 {
			all.WriteString("\n")
		}
		v.print(&all)
	}
	_, err := io.WriteString(w, all.String())
	return err
}

func (v Verdict) print(w io.Writer) {
	fmt.Fprintf(w, "Pod %s/%s, service account %s", v.Pod.Namespace, v.Pod.Name, v.Pod.ServiceAccount)
	if v.Volume != "" {
		fmt.Fprintf(w, ", volume %s", v.Volume)
	}
	if v.Issuer != "" {
		fmt.Fprintf(w, ", issuer %s", v.Issuer)
	}
	fmt.Fprintln(w)
	if v.Request != nil {
		fmt.Fprintln(w, "\nThe pod asks for:")
		v.Request.print(w)
		fmt.Fprintln(w, "\nRules:")
	}
	width := 0
	for _, r := range v.Rules {
		width = max(width, len(r.Rule))
	}
	for _, r := range v.Rules {
		verb := "allowed"
		if !r.Allowed {
			verb = "denied"
		}
		fmt.Fprintln(w, strings.TrimRight(fmt.Sprintf("  %-8s %-*s  %s", verb, width, r.Rule, clip(r.Expression)), " "))
		if r.Message != "" {
			fmt.Fprintf(w, "           %s\n", r.Message)
		}
	}
	switch {
	case v.Event != "":
		fmt.Fprintf(w, "\nDenied. The pod's event:\n  %s\n", v.Event)
	case v.Request == nil:
		fmt.Fprintln(w, "\nAllowed: a volume with trust only has no names.")
	default:
		fmt.Fprintln(w, "\nAllowed.")
	}
}

func (r Request) print(w io.Writer) {
	line := func(title string, values ...string) {
		if len(values) > 0 && values[0] != "" {
			fmt.Fprintf(w, "  %-17s %s\n", title, strings.Join(values, ", "))
		}
	}
	line("common name", r.CommonName)
	line("DNS names", r.DNSNames...)
	line("IP addresses", r.IPAddresses...)
	line("URIs", r.URIs...)
	line("e-mail addresses", r.EmailAddresses...)
	for _, field := range names.SubjectFields() {
		line(field.Key, r.Subject[field.Key]...)
	}
	if r.TemplateData != nil {
		data, _ := json.Marshal(r.TemplateData) // it was JSON
		line("template data", string(data))
	}
	line("duration", r.Duration)
	line("key type", r.KeyType)
}

// clip returns the beginning of an expression in one line.
func clip(expression string) string {
	const most = 70
	text := []rune(strings.Join(strings.Fields(expression), " "))
	if len(text) > most {
		return string(text[:most-1]) + "…"
	}
	return string(text)
}
