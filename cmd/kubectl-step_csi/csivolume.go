package main

import (
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.yaml.in/yaml/v3"

	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
)

const (
	stepDriver        = "csi.step-ca.io"
	certManagerDriver = "csi.cert-manager.io"
	certManagerPrefix = certManagerDriver + "/"
)

// certManagerAttributes returns what becomes of each attribute of cert-manager's csi-driver,
// without its prefix: the table of docs/migrate-cert-manager.md.
func certManagerAttributes() map[string]string {
	return map[string]string{
		"issuer-name":         "issuer",
		"issuer-kind":         "",
		"issuer-group":        "",
		"common-name":         "common-name",
		"literal-subject":     "",
		"organizations":       "organizations",
		"organizationalunits": "organizational-units",
		"countries":           "countries",
		"provinces":           "provinces",
		"localities":          "localities",
		"streetaddresses":     "street-addresses",
		"postalcodes":         "postal-codes",
		"serialnumber":        "",
		"dns-names":           "dns-names",
		"ip-sans":             "ip-sans",
		"uri-sans":            "uri-sans",
		"duration":            "duration",
		"renew-before":        "renew-before",
		"is-ca":               "",
		"key-usages":          "",
		"key-encoding":        "key-encoding",
		"key-algorithm":       "key-type",
		"key-size":            "key-type",
		"reuse-private-key":   "reuse-private-key",
		"certificate-file":    "certificate-file",
		"privatekey-file":     "privatekey-file",
		"ca-file":             "ca-file",
		"fs-group":            "fs-group",
		"pkcs12-enable":       "pkcs12-file",
		"pkcs12-filename":     "pkcs12-file",
		"pkcs12-password":     "",
	}
}

// csiVolume converts a volume of cert-manager's csi-driver.
func (c *converter) csiVolume(p pod, volume *yaml.Node) {
	csi := get(volume, "csi")
	if text(csi, "driver") != certManagerDriver {
		return
	}
	place := p.place(volume)
	old := get(csi, "volumeAttributes")
	given := map[string]string{}
	if old != nil && old.Kind == yaml.MappingNode {
		for pair := range slices.Chunk(old.Content, 2) {
			if key, found := strings.CutPrefix(pair[0].Value, certManagerPrefix); found {
				given[key] = text(pair[1])
			}
		}
	}
	if given["is-ca"] == "true" {
		c.remarks.lose(place, "step-csi issues no CA certificates; the volume is unchanged")
		return
	}
	issuer, err := c.issuer(place, given["issuer-name"], given["issuer-group"])
	if err != nil {
		c.remarks.lose(place, "%v; the volume is unchanged", err)
		return
	}
	r := newRequest(place)
	together := newRequest(place) // what several of the old attributes decide together
	together.lifetime(given["duration"], given["renew-before"])
	together.key(given["key-algorithm"], given["key-size"], given["key-encoding"])
	if old != nil && old.Kind == yaml.MappingNode {
		c.attributes(r, p, old, given, issuer, together.attributes)
	}
	for pair := range slices.Chunk(together.attributes.Content, 2) {
		r.set(pair[0].Value, pair[1].Value)
	}
	r.lost = append(r.lost, together.lost...)
	r.notes = append(r.notes, together.notes...)
	if !c.usable(r, p) {
		return
	}
	set(csi, "driver", stringNode(stepDriver))
	if len(r.attributes.Content) > 0 {
		if old != nil {
			r.attributes.HeadComment, r.attributes.LineComment, r.attributes.FootComment = old.HeadComment, old.LineComment, old.FootComment
			r.attributes.Style = old.Style
		}
		set(csi, "volumeAttributes", r.attributes)
	} else {
		remove(csi, "volumeAttributes")
	}
	if text(csi, "readOnly") != "true" {
		set(csi, "readOnly", boolNode(true))
	}
	p.document.changed = true
}

// attributes translates each of the old attributes at its place, with its comments. Those of
// the lifetime and of the key get their values from together.
func (c *converter) attributes(r *request, p pod, old *yaml.Node, given map[string]string, issuer string, together *yaml.Node) {
	table := certManagerAttributes()
	for pair := range slices.Chunk(old.Content, 2) {
		key, known := strings.CutPrefix(pair[0].Value, certManagerPrefix)
		value := variables(text(pair[1]))
		ours := table[key]
		if _, listed := table[key]; !known || !listed {
			r.lose("%s: step-csi has no such attribute; it was left out", pair[0].Value)
			continue
		}
		before := len(r.attributes.Content)
		switch {
		case key == "issuer-name":
			if issuer != "default" {
				r.set(ours, issuer)
			}
		case value == "":
		case key == "dns-names":
			r.dnsNames(strings.Split(value, ","), cmp.Or(text(p.node, "metadata", "namespace"), c.namespace), c.clusterDomain)
		case key == "duration", key == "renew-before", key == "key-encoding", ours == "key-type":
			r.set(ours, text(together, ours))
		case key == "issuer-kind", key == "issuer-group", key == "is-ca":
		case key == "key-usages":
			r.usages(pair[0].Value, strings.Split(value, ","))
		case key == "literal-subject":
			r.lose("%s: write each field of the subject into its own attribute, such as organizations", pair[0].Value)
		case key == "pkcs12-enable":
			if value == "true" {
				r.set(ours, cmp.Or(given["pkcs12-filename"], "keystore.p12"))
			}
		case key == "pkcs12-filename":
		case key == "pkcs12-password":
			r.lose("%s: a password in a pod's spec is no secret, and was left out. The node plugin generates one in the file keystore-password; "+
				"for one of your own, set nodePublishSecretRef, as docs/keystores.md says", pair[0].Value)
		case ours == "":
			r.lose("%s: step-csi has no such attribute; it was left out", pair[0].Value)
		default:
			r.set(ours, value)
		}
		if len(r.attributes.Content) > before {
			from, to := pair[0], r.attributes.Content[before]
			to.HeadComment, to.LineComment, to.FootComment = from.HeadComment, from.LineComment, from.FootComment
			r.attributes.Content[before+1].LineComment = pair[1].LineComment
		}
	}
}

// bareVariable matches the variables without braces, which cert-manager's csi-driver expands,
// too.
var bareVariable = regexp.MustCompile(`\$(POD_NAMESPACE|POD_NAME|POD_UID|SERVICE_ACCOUNT_NAME)\b`)

func variables(value string) string { return bareVariable.ReplaceAllString(value, "$${$1}") }

// request collects the attributes of one volume, and what cannot be translated to them.
type request struct {
	place      string
	attributes *yaml.Node
	lost       []string
	notes      []string
}

func newRequest(place string) *request { return &request{place: place, attributes: mapNode()} }

func (r *request) lose(format string, args ...any) {
	r.lost = append(r.lost, fmt.Sprintf(format, args...))
}

func (r *request) note(format string, args ...any) {
	r.notes = append(r.notes, fmt.Sprintf(format, args...))
}

// set sets an attribute, unless the value is empty, which step-csi rejects.
func (r *request) set(key, value string) {
	if value != "" {
		set(r.attributes, key, stringNode(value))
	}
}

// setList sets an attribute that is a list with commas.
func (r *request) setList(key, field string, values []string) {
	for _, value := range values {
		if strings.Contains(value, ",") {
			r.lose("%s: %s contains a comma, which separates values in the attribute %s; the field was left out", field, names.Quote(value), key)
			return
		}
	}
	r.set(key, strings.Join(values, ","))
}

// dnsNames sets the DNS names, and service-names for Services all of whose names are there.
func (r *request) dnsNames(all []string, namespace string, cluster names.ClusterDomain) {
	for i, name := range all {
		all[i] = strings.TrimSpace(name)
	}
	all = slices.DeleteFunc(all, func(name string) bool { return name == "" })
	var services []string
	for _, in := range []string{namespace, "${POD_NAMESPACE}"} {
		for _, name := range slices.Clone(all) {
			service, ok := strings.CutSuffix(name, "."+in+".svc")
			if !ok || in == "" || service == "" || strings.ContainsAny(service, ".*$") {
				continue
			}
			forms := []string{service + "." + in, name, ""}
			if names.IsDomain(in, cluster) {
				forms = forms[1:]
			}
			for _, domain := range []string{cluster.String(), "${CLUSTER_DOMAIN}"} {
				forms[len(forms)-1] = name + "." + domain
				if !slices.ContainsFunc(forms, func(form string) bool { return !slices.Contains(all, form) }) {
					services = append(services, service)
					all = slices.DeleteFunc(all, func(name string) bool { return slices.Contains(forms, name) })
				}
			}
		}
	}
	slices.Sort(services)
	r.set("service-names", strings.Join(slices.Compact(services), ","))
	r.set("dns-names", strings.Join(all, ","))
}

// lifetime sets the duration and when to renew, as cert-manager writes them.
func (r *request) lifetime(duration, renewBefore string) {
	lifetime, err := time.ParseDuration(duration)
	before, errBefore := time.ParseDuration(renewBefore)
	if err == nil && errBefore == nil && before > lifetime/10*9 {
		r.lose("a renewal %s before the end of %s leaves less than a tenth of the lifetime, which step-csi rejects; "+
			"renew-before was left out, and step-csi renews a third of the lifetime before the end", renewBefore, duration)
		renewBefore = ""
	}
	r.set("duration", duration)
	r.set("renew-before", renewBefore)
}

// key sets the type of the private key, and the encoding, as cert-manager writes them.
func (r *request) key(algorithm, size, encoding string) {
	family := strings.ToLower(cmp.Or(algorithm, "RSA"))
	encoding = strings.ToLower(encoding)
	if algorithm != "" || size != "" || encoding == "pkcs1" {
		keyType := family
		switch family {
		case "rsa":
			keyType += "-" + cmp.Or(size, "2048")
		case "ecdsa":
			keyType += "-p" + cmp.Or(size, "256")
		}
		if !slices.Contains(issuer.KeyTypes(), issuer.KeyType(keyType)) {
			r.lose("step-csi has no keys of the type %s; key-type was left out, and the key is ecdsa-p256. Set key-type to one of %v", names.Quote(keyType), issuer.KeyTypes())
			return
		}
		if keyType != string(issuer.ECDSAP256) {
			r.set("key-type", keyType)
		}
	} else {
		r.note("the key is ecdsa-p256, and not RSA as with cert-manager; if a program needs an RSA key, set key-type: rsa-2048")
	}
	switch {
	case encoding == "pkcs1" && family == "ecdsa":
		r.set("key-encoding", "sec1") // which cert-manager calls PKCS1, too
	case encoding == "pkcs1" && family == "ed25519":
		r.lose("key-encoding: an Ed25519 key can only be in PKCS#8; the attribute was left out")
	case encoding != "pkcs8":
		r.set("key-encoding", encoding)
	}
}

// usages reports key usages that step-ca's own template does not set.
func (r *request) usages(field string, usages []string) {
	for _, usage := range usages {
		switch strings.TrimSpace(usage) {
		case "", "signing", "digital signature", "key encipherment", "server auth", "client auth":
		default:
			r.lose("%s: step-csi sets no key usages; if a program needs %s, set it in the X.509 template of the CA's provisioner", field, names.Quote(usage))
		}
	}
}

// usable prints the remarks, and tells whether step-csi accepts the attributes.
func (c *converter) usable(r *request, p pod) bool {
	values := map[string]string{}
	for pair := range slices.Chunk(r.attributes.Content, 2) {
		values[pair[0].Value] = pair[1].Value
	}
	if err := c.check(values, p); err != nil {
		c.remarks.lose(r.place, "step-csi would reject the attributes: %v; the volume is unchanged", err)
		return false
	}
	for _, text := range r.lost {
		c.remarks.lose(r.place, "%s", text)
	}
	for _, text := range r.notes {
		c.remarks.note(r.place, "%s", text)
	}
	for _, key := range slices.Sorted(maps.Keys(values)) {
		if subject := []string{"organizations", "organizational-units", "countries", "provinces", "localities", "street-addresses", "postal-codes"}; slices.Contains(subject, key) {
			c.remarks.note(r.place, "subject fields need a template at the CA, and a policy that allows them: docs/subject.md")
		}
		if slices.Contains([]string{"ip-sans", "email-sans"}, key) {
			c.remarks.note(r.place, "%s: the default policy denies them: docs/policy.md", key)
		}
	}
	return true
}

// check parses the attributes as the node plugin does, for a pod like p.
func (c *converter) check(values map[string]string, p pod) error {
	trustDomain, err := spiffeid.TrustDomainFromString(c.clusterDomain.String())
	if err != nil {
		return err
	}
	_, err = attributes.Parse(values, issuer.Pod{
		Namespace:      cmp.Or(text(p.node, "metadata", "namespace"), c.namespace, "default"),
		Name:           "pod-0",
		UID:            "00000000-0000-4000-8000-000000000000",
		ServiceAccount: "default",
		Node:           "node",
	}, text(p.spec, "securityContext", "fsGroup"), attributes.Config{
		ClusterDomain: c.clusterDomain,
		TrustDomain:   trustDomain,
		Issuers:       map[string]issuer.Lifetimes{cmp.Or(values["issuer"], "default"): {}},
	})
	return err
}
