// Package policy decides which names a pod may have in its certificate. A policy is
// a list of CEL validations in the form of a ValidatingAdmissionPolicy
// (https://kubernetes.io/docs/reference/access-authn-authz/validating-admission-policy/).
//
// Every validation must hold. Expressions see three typed variables, so a misspelt
// field is an error at startup:
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
//	request.organizations, request.organizationalUnits, request.countries,
//	request.provinces, request.localities, request.streetAddresses,
//	request.postalCodes       list(string), other fields of the subject
//	request.templateData      map(string, dyn), a JSON object for the X.509 template of
//	                          the CA's provisioner; numbers are doubles
//	config.clusterDomain      string, such as "cluster.local"
//	config.trustDomain        string
//	config.allowShortNames    bool
//
// Besides standard CEL there are the string, set and network (ip, cidr)
// functions, as in Kubernetes.
//
// Three rules hold whatever the expressions say. Subject fields and template data are denied
// unless the configuration allows them and a validation mentions them (see Config): a policy
// that says nothing about them does not allow them. No pod may have the name of a CA, of the
// registration authority, of the API server or of the local machine, or an address that is
// another host in each network: it could impersonate them (see Reserved). And every name is
// in the one spelling that package names defines, with at most 100 names in a
// request, so expressions can compare names as plain strings. The common name is
// the exception: it can be any printable text of at most 64 bytes.
//
// The default list (see Default) keeps a pod inside its namespace. It does not
// prevent the following:
//
//   - Everyone who may create a namespace named like a public top-level domain gets
//     names such as <x>.dev for its pods. The cluster's DNS gives them these names
//     anyway, see
//     https://kubernetes.io/docs/concepts/overview/working-with-objects/namespaces/#namespaces-and-dns.
//     The list denies this form only for namespaces that hardly anyone names like
//     this in good faith (com, io, …).
//   - The common name is not qualified by the namespace where it is the pod's name,
//     which is allowed beside a DNS name, or, if allowed, a short name: in any
//     namespace, a pod can have the name of yours, or be called app-reader. A server
//     that maps the common name to a user (PostgreSQL's cert, etcd, NATS) must either
//     not trust this CA for that purpose, or have a validation that denies such
//     common names. The list denies a pod's name without a "-", such as postgres or
//     root.
//   - A name with two labels has two owners: clients in another namespace read
//     nats-0.nats as the pod nats-0 of their own headless Service nats, and a pod in
//     the namespace nats gets the name. They must connect to a longer form.
//   - With short names allowed, all namespaces share them.
//   - Clusters that share both the CA and the cluster domain share all names.
package policy

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
)

// Config is the configuration of a Policy.
type Config struct {
	ClusterDomain names.ClusterDomain
	TrustDomain   spiffeid.TrustDomain
	// AllowShortNames makes the default list allow names without a dot.
	AllowShortNames bool
	// AllowSubjectFields are the keys of the subject fields that the validations decide
	// about, such as "organizations" (see names.SubjectField). A validation must mention
	// each. All others are denied.
	AllowSubjectFields []string
	// AllowTemplateData lets the validations decide about template data, which one must
	// mention. Otherwise, it is denied.
	AllowTemplateData bool
	// Issuer is the name of the issuer that the policy is for.
	Issuer string
	// Reserved are the hosts that no pod gets, in any form, nor a wildcard that covers
	// them. Nil means those that are the same in every cluster.
	Reserved *Reserved
	// Validations replace the default list, unless there are none.
	Validations []Validation
}

// Policy decides which names a pod may have. It is safe for concurrent use.
type Policy struct {
	settings    settings
	issuer      string
	reserved    *Reserved
	subject     subjectRules
	validations []validation
}

var _ issuer.Policy = (*Policy)(nil).Check

// New compiles the validations. The error shows every validation that does not
// compile, with the position in its expression.
func New(c Config) (*Policy, error) {
	if c.ClusterDomain == (names.ClusterDomain{}) || c.TrustDomain.IsZero() {
		return nil, errors.New("a policy needs a cluster domain and a trust domain")
	}
	if len(c.Validations) == 0 {
		c.Validations = Default()
	}
	env, err := newEnvironment()
	if err != nil {
		return nil, fmt.Errorf("set up CEL: %w", err)
	}
	p := &Policy{settings: settings{c.ClusterDomain.String(), c.TrustDomain.Name(), c.AllowShortNames}, issuer: c.Issuer, reserved: c.Reserved}
	if p.reserved == nil {
		p.reserved = NewReserved(c.ClusterDomain)
	}
	var failed []error
	if p.subject, err = newSubjectRules(c, env); err != nil {
		failed = append(failed, err)
	}
	for i, v := range c.Validations {
		compiled, err := v.compile(env, fmt.Sprintf("validations[%d]", i))
		compiled.decision = decision(v, c.Issuer, c.AllowShortNames)
		failed = append(failed, err)
		p.validations = append(p.validations, compiled)
	}
	if err := errors.Join(failed...); err != nil {
		return nil, err
	}
	return p, nil
}

// decision says who can allow what the validation denies. For a validation of the default
// list, which the chart writes into every configuration, it names the settings. The message
// of any other validation is the administrator's own.
func decision(v Validation, issuer string, shortNames bool) string {
	i := slices.IndexFunc(Default(), v.same)
	if i < 0 {
		return " (decided by the policy in step-csi's configuration)"
	}
	settings := "policy.validations"
	if issuer != "" {
		settings += " or issuers." + issuer + ".policy.validations"
	}
	if i == validationOfNamespace && !shortNames {
		settings += "; policy.allowShortNames allows names without a dot"
	}
	return " (the cluster's administrator can allow it: " + settings + ")"
}

// Check decides whether the pod may have what it requests. A denial wraps
// issuer.Denied and has the message of the first validation that does not hold.
// A validation that cannot be evaluated denies, too. Any other error is that of
// ctx.
func (p *Policy) Check(ctx context.Context, pod issuer.Pod, req issuer.Request) error {
	if err := errors.Join(checkPod(pod), names.CheckTotal(req.AlternativeNames()), p.reserved.check(req)); err != nil {
		return fmt.Errorf("%w: %w", issuer.Denied, err)
	}
	if err := p.subject.check(req); err != nil {
		return fmt.Errorf("%w: %w", issuer.Denied, err)
	}
	vars := p.variables(pod, req)
	for _, v := range p.validations {
		if err := v.check(ctx, vars); err != nil {
			return err
		}
	}
	return nil
}

// checkPod rejects an identity that no API server gives, because expressions build
// names from it.
func checkPod(pod issuer.Pod) error {
	for _, field := range []struct {
		name string
		err  error
	}{
		{"namespace", names.CheckLabel(pod.Namespace)},
		{"name", names.CheckSubdomain(pod.Name)},
		{"UID", names.CheckLabel(pod.UID)},
		{"service account", names.CheckSubdomain(pod.ServiceAccount)},
	} {
		if field.err != nil {
			return fmt.Errorf("the pod's %s: %w", field.name, field.err)
		}
	}
	return nil
}
