package integration

import (
	"os"
	"strings"
	"testing"

	"github.com/smallstep/certificates/authority/provisioner"

	"github.com/flexstack/step-csi/cmd/kubectl-step_csi/policytest"
	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/test/node"
)

// What "kubectl step-csi policy test" says of a configuration is what the pod gets: its
// certificate, or the event with the same sentence.
func TestPolicyTestSaysWhatThePodGets(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	template, err := os.ReadFile("../../deploy/step-ca/subject.tpl")
	node.Must(t, err)
	node.Must(t, ca.Change(func(p *provisioner.JWK) {
		p.Options = &provisioner.Options{X509: &provisioner.X509Options{Template: string(template)}}
	}))
	const own = `policy:
  allowSubjectFields: [organizations]
  validations:
  - expression: request.organizations.all(o, o == pod.namespace)
    messageExpression: "'only the organization ' + pod.namespace"
  - expression: request.dnsNames.all(n, n.endsWith('.shop'))
    message: only names of shop
  - expression: request.duration <= duration('2h')
`
	for mode, start := range map[string]func() (n *node.Node, config string, admit func(node.Pod), at string){
		"node": func() (*node.Node, string, func(node.Pod), string) {
			n := node.New(t, binary, ca)
			n.ChangeConfig("issuers:", own+"issuers:")
			n.Start()
			return n, n.Config, func(node.Pod) {}, ""
		},
		"node with the default policy": func() (*node.Node, string, func(node.Pod), string) {
			n := newNode(t, ca)
			return n, n.Config, func(node.Pod) {}, ""
		},
		"ra": func() (*node.Node, string, func(node.Pod), string) {
			r := startAuthority(t, ca, 1, own)
			return r.newNode(), r.replicas[0].config, r.admit, "registration authority " + r.url() + ": "
		},
	} {
		n, config, admit, at := start()
		var allowed, denied int
		for _, attributes := range []map[string]string{
			{},
			{"service-names": "web"},
			{"dns-names": "a.shop,b.shop"},
			{"dns-names": "www.example.com"},
			{"dns-names": "localhost"},
			{"dns-names": "a.shop", "common-name": "postgres"},
			{"ip-sans": "127.0.0.1"},
			{"ip-sans": "192.0.2.1"},
			{"organizations": "shop"},
			{"organizations": "other"},
			{"countries": "DE"},
			{"template-data": "{}"},
			{"duration": "3h"},
			{"duration": "90h"},
			{"issuer": "other"},
			{"dns-name": "a.shop"},
			{"spiffe": "false"},
			{"uri-sans": "https://example.com/"},
		} {
			p := node.Pod{Name: "web-0", Attributes: attributes}
			verdicts, err := policytest.Evaluate(t.Context(), policytest.Options{
				Files: []string{config}, Attributes: attributes,
				Pod: issuer.Pod{Namespace: "shop", Name: p.Name, UID: p.ID(), ServiceAccount: "web", Node: "node-1"},
			}, strings.NewReader(""))
			node.Must(t, err)
			want := verdicts[0]
			// The registration authority's configuration does not have its own URL.
			want.Event = strings.Replace(want.Event, "issuer default: denied: ", "issuer default: "+at+"denied: ", 1)
			admit(p)
			err = n.TryPublish(p)
			switch {
			case err == nil:
				allowed++
				n.Unpublish(p)
			default:
				denied++
			}
			if want.Allowed != (err == nil) || err != nil && err.Error() != want.Event {
				t.Errorf("%s, %v: policy test says %v, %q, but the pod gets\n%v", mode, attributes, want.Allowed, want.Event, err)
			}
		}
		if allowed < 4 || denied < 8 {
			t.Errorf("%s: %d requests are allowed and %d denied: both have to be compared", mode, allowed, denied)
		}
	}
}
