package policy

import (
	"strings"

	"github.com/flexstack/step-csi/issuer/names"
)

// validationOfNamespace is the index of the validation in the default list that denies DNS
// names outside of the pod's namespace, and names without a dot.
const validationOfNamespace = 0

// Default returns the list that keeps a pod inside its namespace.
//
// The two validations of DNS names are safe because each name has one owner:
//
//   - <…>.<ns>.svc.<cluster domain>, of any depth, such as the name of a
//     StatefulSet's pod, belongs to the namespace left of svc.
//   - <…>.<ns>.svc, of any depth, does too. It cannot be confused with the first
//     form, because no cluster domain may end in svc.
//   - <x>.<ns> has exactly two labels. With a suffix match instead, a pod in a
//     namespace called svc would get b.a.svc, which is service b in namespace
//     a, and one in a namespace called com would get www.example.com.
//
// Even with two labels, a namespace called like the last label of the cluster
// domain would get names beside the cluster domain, or the domain itself, one called
// com would get example.com, and one called internal the hosts of a private network.
// Namespaces with such names (see names.Domains) can use only the longer forms.
//
// A pod can have any name, also that of a host, such as admin.example.com or db-0.
// Some peers still match the common name against the host name if the certificate has
// no DNS name (RFC 6125, section 6.4.4). So the pod's name is allowed as the common name
// only beside a DNS name. A pod can be named postgres or root, too, and some servers map
// the common name to a user. So the pod's name must have a "-", as controllers name pods,
// and no dot.
func Default() []Validation {
	return []Validation{{
		Expression: `request.dnsNames.all(name,` + ownName + `)`,
		MessageExpression: `'DNS name ' + request.dnsNames.filter(name, !(` + ownName + `))[0] +
' is not allowed: a pod in namespace ' + pod.namespace + ' may have <x>.' + pod.namespace +
', <x>.' + pod.namespace + '.svc and <x>.' + pod.namespace + '.svc.' + config.clusterDomain +
(config.allowShortNames ? ', and names without a dot' : '')`,
	}, {
		Expression: `!(pod.namespace in ['` + strings.Join(names.Domains(), `', '`) + `']) &&
!('.' + config.clusterDomain).endsWith('.' + pod.namespace) ||
request.dnsNames.all(name, name.split('.').size() != 2)`,
		MessageExpression: `'DNS name ' + request.dnsNames.filter(name, name.split('.').size() == 2)[0] +
' is not allowed: a name that ends in .' + pod.namespace + ' may be that of a host outside of the namespace; ' +
'use <x>.' + pod.namespace + '.svc or <x>.' + pod.namespace + '.svc.' + config.clusterDomain`,
	}, {
		Expression: `request.uris.all(uri, uri == ` + spiffeID + `)`,
		MessageExpression: `'URI ' + request.uris.filter(uri, uri != ` + spiffeID + `)[0] +
' is not allowed: the only one is ' + ` + spiffeID,
	}, {
		Expression:        `request.ipAddresses.size() == 0`,
		MessageExpression: `'IP address ' + request.ipAddresses[0] + ' is not allowed: use a DNS name'`,
	}, {
		Expression:        `request.emailAddresses.size() == 0`,
		MessageExpression: `'e-mail address ' + request.emailAddresses[0] + ' is not allowed: use a DNS name'`,
	}, {
		Expression: `request.commonName in ['', pod.uid] + request.dnsNames ||
request.dnsNames.size() > 0 && request.commonName == pod.name && pod.name.contains('-') && !pod.name.contains('.')`,
		MessageExpression: `'common name ' + request.commonName +
' is not allowed: use one of the DNS names, the UID of the pod, ' +
'or, beside a DNS name, the name of the pod if that has a "-" and no "." (others could be taken for users or hosts)'`,
	}}
}

// ownName is true for the names of the pod's namespace.
const ownName = `
  name.endsWith('.' + pod.namespace + '.svc.' + config.clusterDomain) ||
  name.endsWith('.' + pod.namespace + '.svc') ||
  name.endsWith('.' + pod.namespace) && name.split('.').size() == 2 ||
  config.allowShortNames && !name.contains('.')
`

// spiffeID is the SPIFFE ID of the pod's service account.
const spiffeID = `'spiffe://' + config.trustDomain + '/ns/' + pod.namespace + '/sa/' + pod.serviceAccount`
