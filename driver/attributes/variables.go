package attributes

import (
	"fmt"
	"strings"

	"github.com/flexstack/step-csi/issuer/names"
)

// variable is the value of ${NAME} in a name.
type variable struct{ name, value string }

func (p *parser) variables() []variable {
	return []variable{
		{"POD_NAME", p.pod.Name},
		{"POD_NAMESPACE", p.pod.Namespace},
		{"POD_UID", p.pod.UID},
		{"SERVICE_ACCOUNT_NAME", p.pod.ServiceAccount},
		{"NODE_NAME", p.pod.Node},
		{"CLUSTER_DOMAIN", p.config.ClusterDomain.String()},
		{"TRUST_DOMAIN", p.config.TrustDomain.Name()},
	}
}

// expand replaces each ${NAME} once. The values are not expanded again.
func (p *parser) expand(text string) (string, error) {
	var b strings.Builder
	for rest := text; ; {
		before, after, found := strings.Cut(rest, "$")
		b.WriteString(before)
		if !found {
			return b.String(), nil
		}
		name, after, closed := strings.Cut(after, "}")
		value, known := p.variable(name)
		if !closed || !known {
			return "", fmt.Errorf("%s: a $ must begin one of %s", names.Quote(text), strings.Join(p.variableNames(), ", "))
		}
		b.WriteString(value)
		rest = after
	}
}

// variable returns the value of a variable, given as "{NAME".
func (p *parser) variable(name string) (value string, known bool) {
	for _, v := range p.variables() {
		if "{"+v.name == name {
			return v.value, true
		}
	}
	return "", false
}

func (p *parser) variableNames() (all []string) {
	for _, v := range p.variables() {
		all = append(all, "${"+v.name+"}")
	}
	return all
}

// list splits a value at its commas and then expands each part, so that the value
// of a variable cannot add a part.
func (p *parser) list(value string) ([]string, error) {
	parts := strings.Split(value, ",")
	if len(parts) > names.MaxNames {
		return nil, fmt.Errorf("%s has %d names; the limit is %d", names.Quote(value), len(parts), names.MaxNames)
	}
	for i, part := range parts {
		expanded, err := p.expand(strings.TrimSpace(part))
		if err != nil {
			return nil, err
		}
		if expanded == "" {
			return nil, fmt.Errorf("%s has an empty part; leave out the comma", names.Quote(value))
		}
		parts[i] = expanded
	}
	return parts, nil
}
