// Package policy decides which names a pod may have in its certificate, by a
// list of CEL validations in the shape that administrators know from
// ValidatingAdmissionPolicy
// (https://kubernetes.io/docs/reference/access-authn-authz/validating-admission-policy/).
//
// Every validation must hold. Expressions see three variables, all typed, so
// that a misspelt field stops the start instead of denying later:
//
//	pod.namespace, pod.name, pod.uid, pod.serviceAccount, pod.node
//	                          string
//	request.commonName        string, "" if none
//	request.dnsNames          list(string), "*" only as the whole first label
//	request.ipAddresses       list(string), as RFC 5952 writes them
//	request.uris              list(string)
//	request.emailAddresses    list(string)
//	request.duration          google.protobuf.Duration
//	request.keyType           string, such as "ecdsa-p256"
//	request.issuer            string, the issuer's name in the configuration
//	config.clusterDomain      string, such as "cluster.local"
//	config.trustDomain        string
//	config.allowShortNames    bool
//
// Besides standard CEL there are the string, set and network (ip, cidr)
// functions, as in Kubernetes.
//
// The names of the authorities themselves are nobody's, since whoever had one
// could take their place. Before any expression runs, names that are not in their one normal form
// (lower case, ASCII, no trailing dot, no empty label, and so on) are refused,
// so that expressions may compare them as plain strings. There are at most 100
// names in a request.
//
// The default list (see Default) keeps a pod inside its namespace. What it
// does not prevent:
//
//   - Whoever may create a namespace named like a public top-level domain gets
//     names such as <x>.dev for its pods. The cluster's DNS gives it those
//     names anyway, see
//     https://kubernetes.io/docs/concepts/overview/working-with-objects/namespaces/#namespaces-and-dns.
//     Only namespaces that hardly anyone names in good faith (com, io, …) are
//     denied that form.
//   - The common name is not qualified by the namespace where it is the pod's
//     name or, if allowed, a short name: any namespace can run a pod with the
//     name of yours, or one called app-reader. A server that maps the common
//     name to a user (PostgreSQL's cert, etcd, NATS) must either not trust
//     this authority for that, or have a validation that forbids such common
//     names. A pod's name without a "-", such as postgres or root, is refused.
//   - With short names allowed, all namespaces share them.
//   - Clusters that share both the authority and the cluster domain share all
//     names.
package policy

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/flexstack/step-csi/issuer"
)

// Config is what a Policy needs.
type Config struct {
	// ClusterDomain is the DNS domain of the cluster, such as cluster.local.
	ClusterDomain string
	// TrustDomain is the SPIFFE trust domain, without the scheme.
	TrustDomain string
	// AllowShortNames lets the default list accept names without a dot.
	AllowShortNames bool
	// Issuer is the name of the issuer that the policy is for.
	Issuer string
	// Reserved are the hosts of the authorities themselves: DNS names in their
	// normal form, or IP addresses. Nobody gets them, nor a wildcard for them,
	// whatever the validations say.
	Reserved []string
	// Validations replace the default list, unless there are none.
	Validations []Validation
}

// Policy decides which names a pod may have. It is safe for concurrent use.
type Policy struct {
	settings    settings
	issuer      string
	reserved    []string
	validations []validation
}

var _ issuer.Policy = (*Policy)(nil).Check

// New compiles the validations. The error shows every one that does not
// compile, with the place in its expression.
func New(c Config) (*Policy, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	if len(c.Validations) == 0 {
		c.Validations = Default()
	}
	env, err := newEnvironment()
	if err != nil {
		return nil, fmt.Errorf("set up CEL: %w", err)
	}
	p := &Policy{settings: settings{c.ClusterDomain, c.TrustDomain, c.AllowShortNames}, issuer: c.Issuer, reserved: c.Reserved}
	var failed []error
	for i, v := range c.Validations {
		compiled, err := v.compile(env, fmt.Sprintf("validations[%d]", i))
		failed = append(failed, err)
		p.validations = append(p.validations, compiled)
	}
	if err := errors.Join(failed...); err != nil {
		return nil, err
	}
	return p, nil
}

func (c Config) check() error {
	if !isHostName(c.ClusterDomain) {
		return fmt.Errorf("clusterDomain: %q must be a lower-case DNS name without a trailing dot, such as cluster.local", c.ClusterDomain)
	}
	// Under such a domain, x.ns.svc could be both a service's name and a name
	// directly under the cluster domain.
	if strings.HasSuffix("."+c.ClusterDomain, ".svc") {
		return fmt.Errorf("clusterDomain: %q must not end in svc", c.ClusterDomain)
	}
	if !isTrustDomain(c.TrustDomain) {
		return fmt.Errorf("trustDomain: %q must be lower-case letters, digits, '.', '-' and '_', such as cluster.local", c.TrustDomain)
	}
	return nil
}

// Check tells whether the pod may have what it requests. A denial wraps
// issuer.Denied and carries the message of the first validation that does
// not hold; a validation that cannot be evaluated denies too. Any other error
// is that of ctx.
func (p *Policy) Check(ctx context.Context, pod issuer.Pod, req issuer.Request) error {
	if err := errors.Join(checkPod(pod), checkRequest(req), p.checkReserved(req)); err != nil {
		return fmt.Errorf("%w: %w", issuer.Denied, err)
	}
	vars := variables(pod, newRequest(req, p.issuer), p.settings)
	for _, v := range p.validations {
		if err := v.check(ctx, vars); err != nil {
			return err
		}
	}
	return nil
}

// checkReserved refuses the names that a client would take for an authority's.
func (p *Policy) checkReserved(req issuer.Request) error {
	names := append([]string{req.CommonName}, req.DNSNames...)
	for _, ip := range req.IPAddresses {
		names = append(names, ip.String())
	}
	for _, reserved := range p.reserved {
		_, parent, _ := strings.Cut(reserved, ".")
		for _, name := range names {
			if name == reserved || name == "*."+parent {
				return fmt.Errorf("the name %s is reserved: others trust the authority %s by it", name, reserved)
			}
		}
	}
	return nil
}
