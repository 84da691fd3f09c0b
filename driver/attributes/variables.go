package attributes

import (
	"errors"
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
	for {
		before, rest, found := strings.Cut(text, "$")
		b.WriteString(before)
		if !found {
			return b.String(), nil
		}
		name, after, closed := strings.Cut(strings.TrimPrefix(rest, "{"), "}")
		if !strings.HasPrefix(rest, "{") || !closed {
			return "", fmt.Errorf("%s: a $ begins a variable such as ${POD_NAME}", quote(text))
		}
		value, err := p.variable(name)
		if err != nil {
			return "", err
		}
		b.WriteString(value)
		text = after
	}
}

func (p *parser) variable(name string) (string, error) {
	var known []string
	for _, v := range p.variables() {
		if v.name == name {
			return v.value, nil
		}
		known = append(known, "${"+v.name+"}")
	}
	return "", fmt.Errorf("%s is not a variable; these are: %s", quote("${"+name+"}"), strings.Join(known, ", "))
}

// list splits a value at its commas, and then expands each part: no variable
// adds one.
func (p *parser) list(value string) ([]string, error) {
	var all []string
	for part := range strings.SplitSeq(value, ",") {
		expanded, err := p.expand(strings.Trim(part, " \t\n"))
		if err != nil {
			return nil, err
		}
		if expanded == "" {
			return nil, errors.New("is empty, or has an empty part; leave out the key or the comma")
		}
		all = append(all, expanded)
	}
	return all, nil
}
