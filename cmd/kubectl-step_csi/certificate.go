package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// certificateGroup is the API group of Certificate.
const certificateGroup = "cert-manager.io"

// certificate is a Certificate of cert-manager.
type certificate struct {
	object
	spec   *yaml.Node
	secret string
	// pods are the specs of the pods in which a volume of its Secret was converted, and
	// whether one of them has a private key.
	pods map[*yaml.Node]bool
}

// certificate returns nil if the object is none, or has no Secret.
func (c *converter) certificate(o object) *certificate {
	spec := get(o.node, "spec")
	secret := text(spec, "secretName")
	if o.kind() != "Certificate" || !strings.HasPrefix(text(o.node, "apiVersion"), certificateGroup+"/") || secret == "" {
		return nil
	}
	return &certificate{object: o, spec: spec, secret: secret}
}

func (c *converter) namespaceOf(o object) string {
	return cmp.Or(text(o.node, "metadata", "namespace"), c.namespace)
}

// secretVolume converts a volume of a Certificate's Secret.
func (c *converter) secretVolume(p pod, volume *yaml.Node) {
	name := text(volume, "secret", "secretName")
	if name == "" {
		return
	}
	place := p.place(volume)
	cert := c.certificateOf(p, place, name)
	if cert == nil {
		return
	}
	if text(cert.spec, "isCA") == "true" {
		c.remarks.lose(place, "step-csi issues no CA certificates, such as that of %s; the volume is unchanged", cert.object)
		return
	}
	issuer, err := c.issuer(place, text(cert.spec, "issuerRef", "name"), text(cert.spec, "issuerRef", "group"))
	if err != nil {
		c.remarks.lose(place, "%v; the volume is unchanged", err)
		return
	}
	r := newRequest(place)
	if issuer != "default" {
		r.set("issuer", issuer)
	}
	files, err := secretFiles(cert.spec, get(volume, "secret"))
	if err != nil {
		c.remarks.lose(place, "%v; the volume is unchanged", err)
		return
	}
	if cert.pods == nil {
		cert.pods = map[*yaml.Node]bool{}
	}
	csi := mapNode(stringNode("driver"), stringNode(stepDriver), stringNode("readOnly"), boolNode(true))
	if files.trustOnly() {
		r.set("trust-only", "true")
		r.note("the volume contains only the roots, because it had only these files")
	} else {
		c.names(r, cert, p)
		r.lifetime(text(cert.spec, "duration"), renewBefore(r, cert.spec))
		r.key(text(cert.spec, "privateKey", "algorithm"), text(cert.spec, "privateKey", "size"), text(cert.spec, "privateKey", "encoding"))
		if text(cert.spec, "privateKey", "rotationPolicy") == "Never" {
			r.set("reuse-private-key", "true")
		}
	}
	files.set(r)
	if files.hasKeyStore() {
		if secret := keyStores(r, cert.spec, files); secret != "" {
			set(csi, "nodePublishSecretRef", mapNode(stringNode("name"), stringNode(secret)))
		}
	}
	fileMode(r, p, get(volume, "secret"))
	if text(volume, "secret", "optional") == "true" {
		r.note("the Secret was optional; the certificate is not, and the pod waits for it")
	}
	c.subPaths(r, p, text(volume, "name"))
	if !c.usable(r, p) {
		return
	}
	if len(r.attributes.Content) > 0 {
		set(csi, "volumeAttributes", r.attributes)
	}
	// The volume keeps its place, and the comments of its other keys.
	i := index(volume, "secret")
	key := stringNode("csi")
	key.HeadComment, key.LineComment, key.FootComment = volume.Content[i].HeadComment, volume.Content[i].LineComment, volume.Content[i].FootComment
	volume.Content[i], volume.Content[i+1] = key, csi
	p.document.changed = true
	if cert.pods[p.spec] && !files.trustOnly() {
		c.remarks.note(place, "each volume of step-csi has a certificate and a key of its own; mount one volume instead of several, if a program uses files of both")
	}
	cert.pods[p.spec] = cert.pods[p.spec] || !files.trustOnly()
}

// certificateOf returns the Certificate that the pod's Secret of this name is from, or nil. It
// reports one of another namespace.
func (c *converter) certificateOf(p pod, place, name string) (cert *certificate) {
	var elsewhere *certificate
	for _, candidate := range c.certificates {
		switch {
		case candidate.secret != name:
		case c.namespaceOf(candidate.object) == c.namespaceOf(p.object):
			cert = candidate
		default:
			elsewhere = candidate
		}
	}
	if cert == nil && elsewhere != nil {
		c.remarks.lose(place, "the Secret %s has the name of that of %s, which is in another namespace; the volume is unchanged. "+
			"If they belong together, name the namespace with -n or in both objects", name, elsewhere.object)
	}
	return cert
}

// names translates the names and the subject of a Certificate, and reports its other fields.
func (c *converter) names(r *request, cert *certificate, p pod) {
	spec := cert.spec
	r.dnsNames(texts(spec, "dnsNames"), c.namespaceOf(p.object), c.clusterDomain)
	r.set("common-name", text(spec, "commonName"))
	r.setList("ip-sans", "ipAddresses", texts(spec, "ipAddresses"))
	r.setList("uri-sans", "uris", texts(spec, "uris"))
	r.setList("email-sans", "emailAddresses", texts(spec, "emailAddresses"))
	for _, field := range []struct{ theirs, ours string }{
		{"organizations", "organizations"},
		{"organizationalUnits", "organizational-units"},
		{"countries", "countries"},
		{"provinces", "provinces"},
		{"localities", "localities"},
		{"streetAddresses", "street-addresses"},
		{"postalCodes", "postal-codes"},
	} {
		r.setList(field.ours, "subject."+field.theirs, texts(spec, "subject", field.theirs))
	}
	if text(spec, "subject", "serialNumber") != "" {
		r.lose("subject.serialNumber of %s: step-csi has no such attribute; it was left out", cert.object)
	}
	if text(spec, "literalSubject") != "" {
		r.lose("literalSubject of %s: write each field of the subject into its own attribute, such as organizations", cert.object)
	}
	for _, field := range []string{"otherNames", "nameConstraints"} {
		if get(spec, field) != nil {
			r.lose("%s of %s: step-csi has no such attribute; it was left out", field, cert.object)
		}
	}
	r.usages("usages of "+cert.object.String(), texts(spec, "usages"))
}

// renewBefore returns the Certificate's, also if it is a percentage of the lifetime.
func renewBefore(r *request, spec *yaml.Node) string {
	percentage := text(spec, "renewBeforePercentage")
	if percentage == "" {
		return text(spec, "renewBefore")
	}
	lifetime, err := time.ParseDuration(text(spec, "duration"))
	percent, errPercent := strconv.Atoi(percentage)
	if err != nil || errPercent != nil || percent <= 0 || percent >= 100 {
		r.lose("renewBeforePercentage: without a duration, the program cannot know when to renew; step-csi renews a third of the lifetime before the end. Set renew-before for another time")
		return ""
	}
	return (lifetime / 100 * time.Duration(percent)).String()
}

// files are the files of a volume of a Secret: its keys, and the paths in the volume.
type files []struct{ key, path string }

// fileAttributes returns the attribute of each key of a Certificate's Secret.
func fileAttributes() map[string]string {
	return map[string]string{
		"tls.crt":          "certificate-file",
		"tls.key":          "privatekey-file",
		"ca.crt":           "ca-file",
		"tls-combined.pem": "bundle-file",
		"key.der":          "privatekey-der-file",
		"keystore.p12":     "pkcs12-file",
		"truststore.p12":   "pkcs12-truststore-file",
		"keystore.jks":     "jks-file",
		"truststore.jks":   "jks-truststore-file",
	}
}

// secretFiles returns the files that the volume has: those of its items, or all of the
// Secret.
func secretFiles(spec, secret *yaml.Node) (all files, err error) {
	add := func(key, path string) { all = append(all, struct{ key, path string }{key, path}) }
	if items := list(secret, "items"); len(items) > 0 {
		seen := map[string]bool{}
		for _, item := range items {
			key, path := text(item, "key"), text(item, "path")
			switch {
			case fileAttributes()[key] == "":
				return nil, fmt.Errorf("items: step-csi has no file for the key %q of the Secret", key)
			case strings.Contains(path, "/"):
				return nil, fmt.Errorf("items: the path %q is in a directory, and step-csi writes no directories for files", path)
			case seen[key]:
				return nil, fmt.Errorf("items: the key %q has several paths, and step-csi writes each file once", key)
			}
			seen[key] = true
			add(key, path)
		}
		if all.has("tls.crt") != all.has("tls.key", "key.der") {
			return nil, errors.New("items: the volume has a certificate without its private key, or the key alone, and each volume of step-csi has a pair of its own; " +
				"mount both from one volume")
		}
		return all, nil
	}
	for _, key := range []string{"tls.crt", "tls.key", "ca.crt"} {
		add(key, key)
	}
	for _, output := range list(spec, "additionalOutputFormats") {
		switch text(output, "type") {
		case "CombinedPEM":
			add("tls-combined.pem", "tls-combined.pem")
		case "DER":
			add("key.der", "key.der")
		}
	}
	if text(spec, "keystores", "pkcs12", "create") == "true" {
		add("keystore.p12", "keystore.p12")
		add("truststore.p12", "truststore.p12")
	}
	if text(spec, "keystores", "jks", "create") == "true" {
		add("keystore.jks", "keystore.jks")
		add("truststore.jks", "truststore.jks")
	}
	return all, nil
}

func (f files) has(keys ...string) bool {
	for _, file := range f {
		if slices.Contains(keys, file.key) {
			return true
		}
	}
	return false
}

func (f files) trustOnly() bool {
	return !f.has("tls.crt", "tls.key", "tls-combined.pem", "key.der", "keystore.p12", "keystore.jks")
}

func (f files) hasKeyStore() bool {
	return f.has("keystore.p12", "truststore.p12", "keystore.jks", "truststore.jks")
}

// set sets the names of the files that are not step-csi's defaults.
func (f files) set(r *request) {
	for _, file := range f {
		usual := slices.Contains([]string{"tls.crt", "tls.key", "ca.crt"}, file.key)
		if !usual || file.path != file.key {
			r.set(fileAttributes()[file.key], file.path)
		}
	}
}

// keyStores translates what a Certificate says of its key stores, and returns the Secret
// of their password, or an empty string.
func keyStores(r *request, spec *yaml.Node, f files) (secret string) {
	var key string
	for _, kind := range []string{"pkcs12", "jks"} {
		store := get(spec, "keystores", kind)
		suffix := map[string]string{"pkcs12": ".p12", "jks": ".jks"}[kind]
		if !f.has("keystore"+suffix, "truststore"+suffix) {
			continue
		}
		if alias := text(store, "alias"); alias != "" && f.has("keystore"+suffix) {
			r.set("keystore-alias", alias)
		}
		switch text(store, "profile") {
		case "LegacyRC2", "LegacyDES":
			r.set("pkcs12-profile", "legacy")
		case "":
			if kind == "pkcs12" {
				r.note("PKCS#12 files are encrypted by AES; for programs that read no AES, set pkcs12-profile: legacy")
			}
		}
		name := text(store, "passwordSecretRef", "name")
		switch {
		case text(store, "password") != "":
			r.lose("keystores.%s.password: a password in an object is no secret, and was left out. The node plugin generates one in the file keystore-password; "+
				"for one of your own, set nodePublishSecretRef, as docs/keystores.md says", kind)
		case name == "":
		case secret == "":
			secret, key = name, cmp.Or(text(store, "passwordSecretRef", "key"), "password")
		case secret != name || key != cmp.Or(text(store, "passwordSecretRef", "key"), "password"):
			r.lose("keystores: a volume has one password for all key stores; that of the Secret %s is used, and not that of %s", secret, name)
		}
	}
	if secret != "" && key != "keystore-password" {
		r.lose("the password in the Secret %s has the key %q; step-csi reads the key keystore-password: add it to the Secret", secret, key)
	}
	return secret
}

// fileMode translates the mode of the volume's files. The kubelet lets the pod's fsGroup read
// the files of a Secret whatever their mode is.
func fileMode(r *request, p pod, secret *yaml.Node) {
	for _, item := range list(secret, "items") {
		if text(item, "mode") != "" {
			r.lose("items: the files have one mode, and the private key can have one of its own; the mode of %q was left out. Set file-mode and privatekey-mode", text(item, "path"))
		}
	}
	value := text(secret, "defaultMode")
	if value == "" {
		return
	}
	mode, err := strconv.ParseUint(value, 0, 32)
	if err != nil {
		r.lose("defaultMode: %q is not a mode; it was left out", value)
		return
	}
	if text(p.spec, "securityContext", "fsGroup") != "" {
		mode |= 0o440
	}
	// The files are read-only, and none of them is a program.
	if readable := fs.FileMode(mode)&0o644 | 0o400; readable != 0o644 && readable != 0o444 {
		r.set("file-mode", fmt.Sprintf("%04o", readable))
	}
}

// subPaths reports mounts of single files.
func (c *converter) subPaths(r *request, p pod, volume string) {
	for _, container := range p.containers() {
		for _, mount := range list(container, "volumeMounts") {
			if path := cmp.Or(text(mount, "subPath"), text(mount, "subPathExpr")); text(mount, "name") == volume && path != "" {
				r.lose("the container %q mounts %q with subPath, so that it never gets a renewed certificate; mount the directory", text(container, "name"), path)
			}
		}
	}
}

// dropCertificates drops the Certificates whose Secret nothing uses any more, and reports
// the others.
func (c *converter) dropCertificates(objects []object) {
	for _, cert := range c.certificates {
		var users []string
		for _, o := range objects {
			if o.node == cert.node || !c.sees(o, cert) {
				continue
			}
			if usesSecret(o.node, cert.secret) {
				users = append(users, o.String())
			}
		}
		for _, d := range c.skipped {
			if findScalar(d.root, func(value string) bool { return value == cert.secret }) != "" {
				users = append(users, fmt.Sprintf("%s, document at line %d", d.file, d.line))
			}
		}
		place := cert.object.String()
		switch {
		case len(users) > 0:
			c.remarks.lose(place, "its Secret %s is still used by %s, so the Certificate is kept", cert.secret, strings.Join(users, ", "))
		case len(cert.pods) == 0:
			c.remarks.lose(place, "no pod among the manifests has a volume of its Secret %s; the Certificate is kept", cert.secret)
		default:
			cert.drop()
			c.remarks.note(place, "left out, because step-csi now makes the certificates; remove it and the Secret %s from the cluster "+
				"when all pods are replaced and nothing else uses the Secret", cert.secret)
		}
	}
}

// sees tells whether the object can use the Certificate's Secret. One without a namespace may
// belong to each.
func (c *converter) sees(o object, cert *certificate) bool {
	a, b := c.namespaceOf(o), c.namespaceOf(cert.object)
	return a == "" || b == "" || a == b
}

// usesSecret tells whether the node names the Secret: in a key with the word secret, as in an
// Ingress and in a volume, or in an object below such a key, as in secretKeyRef and in a
// Gateway's certificateRefs.
func usesSecret(n *yaml.Node, secret string) bool {
	if n.Kind == yaml.MappingNode {
		for pair := range slices.Chunk(n.Content, 2) {
			key := strings.ToLower(pair[0].Value)
			if !strings.Contains(key, "secret") && !strings.Contains(key, "certificateref") {
				continue
			}
			for _, name := range []string{text(pair[1]), text(pair[1], "name")} {
				if name == secret || strings.HasSuffix(name, "/"+secret) {
					return true
				}
			}
			for _, item := range list(pair[1]) {
				if text(item, "name") == secret || text(item) == secret {
					return true
				}
			}
		}
	}
	return slices.ContainsFunc(n.Content, func(child *yaml.Node) bool { return usesSecret(child, secret) })
}
