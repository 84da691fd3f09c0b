package attributes

import (
	"fmt"
	"strings"
)

// variable is what ${NAME} stands for in a name.
type variable struct{ name, value string }

func (p *parser) variables() []variable {
	return []variable{
		{"POD_NAME", p.pod.Name},
		{"POD_NAMESPACE", p.pod.Namespace},
		{"POD_UID", p.pod.UID},
		{"SERVICE_ACCOUNT_NAME", p.pod.ServiceAccount},
		{"NODE_NAME", p.pod.Node},
		{"CLUSTER_DOMAIN", p.config.ClusterDomain},
		{"TRUST_DOMAIN", p.config.TrustDomain},
	}
}

// expand replaces each ${NAME} once: what a variable holds is not expanded.
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
			return "", fmt.Errorf("%s: a $ begins one of %s", quote(text), strings.Join(p.variableNames(), ", "))
		}
		b.WriteString(value)
		rest = after
	}
}

// variable looks up what is between $ and }.
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

// list splits a value at its commas, and then expands each part: no variable
// adds one.
func (p *parser) list(value string) ([]string, error) {
	parts := strings.Split(value, ",")
	if len(parts) > maxNames {
		return nil, fmt.Errorf("%s are %d names; at most %d are possible", quote(value), len(parts), maxNames)
	}
	for i, part := range parts {
		expanded, err := p.expand(strings.TrimSpace(part))
		if err != nil {
			return nil, err
		}
		if expanded == "" {
			return nil, fmt.Errorf("%s has an empty part; leave out the comma", quote(value))
		}
		parts[i] = expanded
	}
	return parts, nil
}
