package attributes

import (
	"errors"
	"fmt"
	"strings"

	"github.com/flexstack/step-csi/issuer/names"
)

// setList sets a list of comma-separated names. It drops duplicates.
func setList[T comparable](field func(*parser) *[]T, parse func(string) (T, error)) func(*parser, string) error {
	return func(p *parser, value string) error {
		parts, err := p.list(value)
		if err != nil {
			return err
		}
		all, err := names.ParseAll(parse, parts...)
		*field(p) = unique(all)
		return err
	}
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

func (p *parser) setCommonName(value string) error {
	name, err := p.expand(value)
	if err != nil {
		return err
	}
	p.result.Request.CommonName, err = names.ParseCommonName(name)
	return err
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
		return errors.New(`spiffe: "false" leaves the certificate without a name: add service-names or dns-names, or leave out spiffe`)
	}
	return names.CheckTotal(all)
}

// serviceNames returns the names that the cluster's DNS gives the Services.
func (p *parser) serviceNames() (all []names.DNSName, err error) {
	for _, service := range p.services {
		inNamespace := service.String() + "." + p.pod.Namespace
		parsed, err := names.ParseAll(names.ParseDNSName, inNamespace, inNamespace+".svc", inNamespace+".svc."+p.config.ClusterDomain.String())
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

// defaultCommonName returns the first DNS name that is short enough. Without one,
// it returns the pod's name if that looks like the work of a controller. A pod can
// also be named postgres or admin.example.com, and a server that maps the common
// name to a user or a host must not take the pod for that user or host.
func (p *parser) defaultCommonName() (names.CommonName, error) {
	if name, ok := names.FirstCommonName(p.result.Request.DNSNames); ok {
		return name, nil
	}
	name, err := names.ParseCommonName(p.pod.Name)
	if err == nil && strings.Contains(p.pod.Name, "-") && !strings.Contains(p.pod.Name, ".") {
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
