package main

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"path"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

const (
	autocertLabel  = "autocert.step.sm"
	autocertPrefix = autocertLabel + "/"
	// autocertPath is where autocert mounts its files, unless a pod says otherwise.
	autocertPath = "/var/run/autocert.step.sm"
)

// autocert converts the annotations of autocert to a volume, which it mounts where autocert
// does: into all containers and init containers. See https://github.com/smallstep/autocert.
func (c *converter) autocert(p pod) {
	annotations := get(p.metadata, "annotations")
	given := map[string]string{}
	if annotations != nil && annotations.Kind == yaml.MappingNode {
		for pair := range slices.Chunk(annotations.Content, 2) {
			if key, found := strings.CutPrefix(pair[0].Value, autocertPrefix); found {
				given[key] = text(pair[1])
			}
		}
	}
	name := strings.TrimSpace(given["name"])
	if name == "" {
		return
	}
	place := fmt.Sprintf("%s, annotation %sname", p.object, autocertPrefix)
	mountPath := path.Clean(cmp.Or(given["mount-path"], autocertPath))
	for _, container := range p.containers() {
		for _, mount := range list(container, "volumeMounts") {
			if path.Clean(text(mount, "mountPath")) == mountPath {
				c.remarks.lose(place, "the container %q already mounts a volume at %s; the pod is unchanged. "+
					"If the manifest is from a cluster in which autocert has changed it, use the manifest from before", text(container, "name"), mountPath)
				return
			}
		}
	}
	if given["status"] != "" {
		c.remarks.lose(place, "autocert has already changed the pod, as %sstatus says; the pod is unchanged. Use the manifest from before", autocertPrefix)
		return
	}

	r := newRequest(place)
	c.autocertAttributes(r, p, given)
	if !c.usable(r, p) {
		return
	}

	volume := c.freeVolumeName(p)
	csi := mapNode(stringNode("driver"), stringNode(stepDriver), stringNode("readOnly"), boolNode(true), stringNode("volumeAttributes"), r.attributes)
	appendTo(p.spec, "volumes", mapNode(stringNode("name"), stringNode(volume), stringNode("csi"), csi))
	for _, container := range p.containers() {
		appendTo(container, "volumeMounts", mapNode(
			stringNode("name"), stringNode(volume),
			stringNode("mountPath"), stringNode(mountPath),
			stringNode("readOnly"), boolNode(true)))
	}
	for key := range given {
		remove(annotations, autocertPrefix+key)
	}
	if len(annotations.Content) == 0 {
		remove(p.metadata, "annotations")
	}
	p.document.changed = true
}

// autocertAttributes translates autocert's annotations, which are given without their prefix.
func (c *converter) autocertAttributes(r *request, p pod, given map[string]string) {
	name := strings.TrimSpace(given["name"])
	var dns, ips, uris, emails []string
	sans := strings.Split(cmp.Or(given["sans"], name), ",")
	for _, san := range sans {
		san = strings.TrimSpace(san)
		switch _, err := netip.ParseAddr(san); {
		case san == "":
		case err == nil:
			ips = append(ips, san)
		case strings.Contains(san, "://"):
			uris = append(uris, san)
		case strings.Contains(san, "@"):
			emails = append(emails, san)
		default:
			dns = append(dns, san)
		}
	}
	if len(dns) == 0 || dns[0] != name || len(dns) > 1 {
		r.set("common-name", name)
	}
	r.dnsNames(dns, c.namespaceOf(p.object), c.clusterDomain)
	r.set("ip-sans", strings.Join(ips, ","))
	r.set("uri-sans", strings.Join(uris, ","))
	r.set("email-sans", strings.Join(emails, ","))
	r.set("duration", given["duration"])
	owner, group, _ := strings.Cut(given["owner"], ":")
	r.set("owner-uid", owner)
	r.set("fs-group", group)
	if mode := given["mode"]; mode != "" && strings.Trim(mode, "01234567") != "" {
		r.lose("%smode: write %q as an octal number in the attribute file-mode, such as 0440", autocertPrefix, mode)
	} else {
		r.set("file-mode", mode)
	}
	r.set("certificate-file", "site.crt")
	r.set("privatekey-file", "site.key")
	r.set("ca-file", "root.crt")
	for _, key := range slices.Sorted(maps.Keys(given)) {
		switch key {
		case "name", "sans", "duration", "owner", "mode", "mount-path":
		case "init-first", "bootstrapper-only": // the kubelet mounts volumes before all containers
		default:
			r.lose("%s%s: step-csi has nothing like it; it was left out", autocertPrefix, key)
		}
	}
}

// freeVolumeName returns certs, as autocert names its volume, or a name like it.
func (c *converter) freeVolumeName(p pod) string {
	for i := 1; ; i++ {
		name := "certs"
		if i > 1 {
			name = fmt.Sprintf("certs-%d", i)
		}
		if !slices.ContainsFunc(p.volumes(), func(volume *yaml.Node) bool { return text(volume, "name") == name }) {
			return name
		}
	}
}

// appendTo appends an item to the list of the key, which it makes if there is none.
func appendTo(n *yaml.Node, key string, item *yaml.Node) {
	items := get(n, key)
	if items == nil || items.Kind != yaml.SequenceNode {
		items = &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
		set(n, key, items)
	}
	if len(items.Content) == 0 {
		items.Style = 0 // not [], in which the item would be
	}
	items.Content = append(items.Content, item)
}
