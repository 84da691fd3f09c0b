package attributes

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/flexstack/step-csi/issuer/names"
)

// listOf parses comma-separated names and drops duplicates. It splits the value at
// its commas before it expands variables, so that a variable cannot add a name.
func listOf[T comparable](p *parser, parse func(string) (T, error)) func(string) ([]T, error) {
	return func(value string) ([]T, error) {
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
		all, err := names.ParseAll(parse, parts...)
		return unique(all), err
	}
}

// expand replaces each variable once. The values are not expanded again.
func (p *parser) expand(text string) (string, error) {
	variables := []string{
		"${POD_NAME}", p.pod.Name,
		"${POD_NAMESPACE}", p.pod.Namespace,
		"${POD_UID}", p.pod.UID,
		"${SERVICE_ACCOUNT_NAME}", p.pod.ServiceAccount,
		"${NODE_NAME}", p.pod.Node,
		"${CLUSTER_DOMAIN}", p.config.ClusterDomain.String(),
		"${TRUST_DOMAIN}", p.config.TrustDomain.Name(),
	}
	var known, removals []string
	for pair := range slices.Chunk(variables, 2) {
		known = append(known, pair[0])
		removals = append(removals, pair[0], "")
	}
	if strings.Contains(strings.NewReplacer(removals...).Replace(text), "$") {
		return "", fmt.Errorf("%s: a $ must begin one of %s", names.Quote(text), strings.Join(known, ", "))
	}
	return strings.NewReplacer(variables...).Replace(text), nil
}

func parseDNSName(text string) (names.DNSName, error) {
	dns, err := names.ParseDNSName(text)
	if _, ipErr := names.ParseIP(text); ipErr == nil {
		err = fmt.Errorf("%w; put it into ip-sans", err)
	}
	return dns, err
}

func parseServiceName(text string) (names.DNSName, error) {
	service, err := names.ParseDNSName(text)
	if err == nil && strings.Contains(service.String(), ".") {
		err = fmt.Errorf("%s is not the name of a Service without its namespace; whole names belong in dns-names", names.Quote(text))
	}
	return service, err
}

func (p *parser) parseCommonName(value string) (names.CommonName, error) {
	name, err := p.expand(value)
	if err != nil {
		return names.CommonName{}, err
	}
	return names.ParseCommonName(name)
}

// finishNames adds the names that follow from several attributes.
func (p *parser) finishNames() error {
	r := &p.result.Request
	services, err := p.serviceNames()
	if err != nil {
		return fmt.Errorf("service-names: %w", err)
	}
	r.DNSNames = unique(append(p.dns, services...))
	if p.spiffe {
		id, err := names.PodSPIFFEID(p.config.TrustDomain, p.pod.Namespace, p.pod.ServiceAccount)
		if err != nil {
			return fmt.Errorf("spiffe: %w", err)
		}
		r.URIs = unique(append([]names.URI{id}, r.URIs...))
	}
	if r.CommonName == (names.CommonName{}) {
		if r.CommonName, err = p.defaultCommonName(); err != nil {
			return fmt.Errorf("common-name: %w", err)
		}
	}
	all := r.AlternativeNames()
	if len(all) == 0 {
		return errors.New(`spiffe: "false" leaves the certificate without a subject alternative name, and a common name alone is not one: add service-names or dns-names, or leave out spiffe`)
	}
	if err := names.CheckTotal(all); err != nil {
		return err
	}
	return r.Subject.Check()
}

// serviceNames returns the names that the cluster's DNS gives the Services. In a namespace
// that is named like a domain, the shortest of them may be that of a host outside of the
// cluster, and the default policy denies it, so serviceNames leaves it out.
func (p *parser) serviceNames() (all []names.DNSName, err error) {
	for _, service := range p.services {
		inNamespace := service.String() + "." + p.pod.Namespace
		forms := []string{inNamespace, inNamespace + ".svc", inNamespace + ".svc." + p.config.ClusterDomain.String()}
		if names.IsDomain(p.pod.Namespace, p.config.ClusterDomain) {
			forms = forms[1:]
		}
		parsed, err := names.ParseAll(names.ParseDNSName, forms...)
		if err != nil {
			return nil, err
		}
		all = append(all, parsed...)
		if p.config.AllowShortNames {
			all = append(all, service)
		}
	}
	return all, nil
}

// defaultCommonName returns the first DNS name that is short enough. If all of them are
// too long, it returns the pod's name if a controller seems to have made it, and
// otherwise the pod's UID. A user can name a pod postgres or admin.example.com, and a
// server that maps the common name to a user must not take the pod for that user.
// Without any DNS name, it returns the UID: some peers then compare the common name with
// the host name, and the pod may not have the name of a host.
func (p *parser) defaultCommonName() (names.CommonName, error) {
	if name, ok := names.FirstCommonName(p.result.Request.DNSNames); ok {
		return name, nil
	}
	name, err := names.ParseCommonName(p.pod.Name)
	if err == nil && len(p.result.Request.DNSNames) > 0 && strings.Contains(p.pod.Name, "-") && !strings.Contains(p.pod.Name, ".") {
		return name, nil
	}
	return names.ParseCommonName(p.pod.UID)
}

func unique[T comparable](all []T) (result []T) {
	seen := map[T]bool{}
	for _, v := range all {
		if !seen[v] {
			seen[v] = true
			result = append(result, v)
		}
	}
	return result
}
