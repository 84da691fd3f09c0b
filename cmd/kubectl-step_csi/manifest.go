package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// document is one YAML document of a file.
type document struct {
	file string
	line int // of the file, in which the document begins
	// text is the document as it was read, with the separator in front of it.
	text string
	// root is nil if the document is empty.
	root             *yaml.Node
	changed, dropped bool
}

// separator is the beginning of a document, after which a comment or content may follow.
var separator = regexp.MustCompile(`^---(?:[ \t\r\n]|$)`)

// documents splits a file. The texts of all documents together are the file.
func documents(file string, data []byte) ([]*document, error) {
	var all []*document
	begin := true
	line, start, end := 0, 0, 0 // start and end are those of the last document
	input := string(data)
	for text := range strings.Lines(input) {
		line++
		if begin || separator.MatchString(text) {
			all = append(all, &document{file: file, line: line})
			start = end
		}
		end += len(text)
		all[len(all)-1].text = input[start:end]
		begin = strings.TrimRight(text, " \t\r\n") == "..."
	}
	for _, d := range all {
		if err := d.parse(); err != nil {
			return nil, fmt.Errorf("%s, document at line %d: %w; if the file is a template, such as of Helm, render it first", file, d.line, err)
		}
	}
	return all, nil
}

// split returns the separator's line, if it has no content, and the content.
func (d *document) split() (line, content string) {
	if !separator.MatchString(d.text) {
		return "", d.text
	}
	line, content, _ = strings.Cut(d.text, "\n")
	if rest := strings.TrimSpace(line[3:]); rest == "" || strings.HasPrefix(rest, "#") {
		return line + "\n", content
	}
	return "---\n", "   " + d.text[3:]
}

func (d *document) parse() error {
	_, content := d.split()
	decoder := yaml.NewDecoder(strings.NewReader(content))
	var root yaml.Node
	if err := decoder.Decode(&root); errors.Is(err, io.EOF) {
		return nil
	} else if err != nil {
		return err
	}
	if err := decoder.Decode(&yaml.Node{}); !errors.Is(err, io.EOF) {
		return errors.New("more follows after its end")
	}
	d.root = &root
	return nil
}

// output returns the document as it is to be printed: as it was read, unless it was changed.
func (d *document) output() (string, error) {
	switch {
	case d.dropped:
		return "", nil
	case !d.changed:
		return d.text, nil
	}
	_, content := d.split()
	inJSON := json.Valid([]byte(content))
	if inJSON {
		quote(d.root)
	}
	out, err := encode(d.root)
	if err != nil {
		return "", err
	}
	// The encoder moves comments, and must not lose more than blank lines.
	if !means(out, d.root) {
		return "", errors.New("the document cannot be written again without a change of its meaning")
	}
	var original yaml.Node
	if err := yaml.Unmarshal([]byte(content), &original); err != nil {
		return "", err
	}
	if reencoded, err := encode(&original); err == nil && !inJSON {
		if kept := keepLines(content, reencoded, out); means(kept, d.root) {
			out = kept
		}
	}
	line, _ := d.split()
	text := line + out
	var indented bytes.Buffer
	if inJSON && json.Indent(&indented, []byte(out), "", "  ") == nil {
		text = line + indented.String()
	}
	if strings.TrimSpace(lastLine(d.text)) == "..." {
		text += "...\n"
	}
	if strings.Contains(d.text, "\r\n") {
		text = strings.ReplaceAll(strings.ReplaceAll(text, "\r\n", "\n"), "\n", "\r\n")
	}
	return text, nil
}

// encode writes the document with the indentation that it has.
func encode(root *yaml.Node) (string, error) {
	var out bytes.Buffer
	encoder := yaml.NewEncoder(&out)
	encoder.SetIndent(indentation(root))
	if compact(root) {
		encoder.CompactSeqIndent()
	}
	if err := encoder.Encode(root); err != nil {
		return "", err
	}
	err := encoder.Close()
	return out.String(), err
}

// means tells whether the text has the meaning of the node.
func means(text string, root *yaml.Node) bool {
	var got yaml.Node
	return yaml.Unmarshal([]byte(text), &got) == nil && same(&got, root)
}

// quote writes all strings as JSON does.
func quote(n *yaml.Node) {
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!str" {
		n.Style = yaml.DoubleQuotedStyle
	} else {
		n.Style |= yaml.FlowStyle
	}
	for _, child := range n.Content {
		quote(child)
	}
}

func lastLine(text string) string {
	text = strings.TrimRight(text, "\r\n")
	return text[strings.LastIndex(text, "\n")+1:]
}

// indentation returns by how many blanks the document indents maps in maps.
func indentation(n *yaml.Node) int {
	if n.Kind == yaml.MappingNode && n.Style&yaml.FlowStyle == 0 {
		for pair := range slices.Chunk(n.Content, 2) {
			if pair[1].Kind == yaml.MappingNode && pair[1].Style&yaml.FlowStyle == 0 && pair[1].Line > pair[0].Line {
				return min(max(2, pair[1].Column-pair[0].Column), 9)
			}
		}
	}
	for _, child := range n.Content {
		if indent := indentation(child); indent != 2 {
			return indent
		}
	}
	return 2
}

// compact tells whether the document writes lists without indentation.
func compact(n *yaml.Node) bool {
	if n.Kind == yaml.MappingNode {
		for pair := range slices.Chunk(n.Content, 2) {
			if pair[1].Kind == yaml.SequenceNode && pair[1].Style&yaml.FlowStyle == 0 && pair[1].Line > 0 {
				return pair[1].Column == pair[0].Column
			}
		}
	}
	return slices.ContainsFunc(n.Content, compact)
}

// same compares what nodes mean.
func same(a, b *yaml.Node) bool {
	if a.Kind == yaml.ScalarNode && (a.Value != b.Value || a.ShortTag() != b.ShortTag()) {
		return false
	}
	return a.Kind == b.Kind && slices.EqualFunc(a.Content, b.Content, same)
}

// hasAlias tells whether a part of the document is a copy of another. A change of one of
// them would change both.
func hasAlias(n *yaml.Node) bool {
	return n.Kind == yaml.AliasNode || slices.ContainsFunc(n.Content, hasAlias)
}

// get returns the value at the path of keys, or nil.
func get(n *yaml.Node, path ...string) *yaml.Node {
	for _, key := range path {
		if n == nil || n.Kind != yaml.MappingNode {
			return nil
		}
		i := index(n, key)
		if i < 0 {
			return nil
		}
		n = n.Content[i+1]
	}
	return n
}

// index returns the index of the key, or -1.
func index(n *yaml.Node, key string) int {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return i
		}
	}
	return -1
}

// text returns the scalar at the path of keys, or an empty string.
func text(n *yaml.Node, path ...string) string {
	if n = get(n, path...); n == nil || n.Kind != yaml.ScalarNode || n.ShortTag() == "!!null" {
		return ""
	}
	return n.Value
}

// list returns the items at the path of keys.
func list(n *yaml.Node, path ...string) []*yaml.Node {
	if n = get(n, path...); n == nil || n.Kind != yaml.SequenceNode {
		return nil
	}
	return n.Content
}

// texts returns the scalars of the list at the path of keys.
func texts(n *yaml.Node, path ...string) (all []string) {
	for _, item := range list(n, path...) {
		all = append(all, text(item))
	}
	return all
}

// set sets the value of the key, in its place if it is there.
func set(n *yaml.Node, key string, value *yaml.Node) {
	if i := index(n, key); i >= 0 {
		n.Content[i+1] = value
		return
	}
	n.Content = append(n.Content, stringNode(key), value)
}

func remove(n *yaml.Node, key string) {
	if n == nil || n.Kind != yaml.MappingNode {
		return
	}
	if i := index(n, key); i >= 0 {
		n.Content = slices.Delete(n.Content, i, i+2)
	}
}

// plain matches what no version of YAML takes for something else than a string.
var (
	plain    = regexp.MustCompile(`^[A-Za-z/][A-Za-z0-9./_-]*(?:,[A-Za-z0-9./_-]+)*$`)
	reserved = regexp.MustCompile(`(?i)^(?:y|yes|n|no|true|false|on|off|null)$`)
)

func stringNode(value string) *yaml.Node {
	n := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: value}
	if !plain.MatchString(value) || reserved.MatchString(value) {
		n.Style = yaml.DoubleQuotedStyle
	}
	return n
}

func boolNode(value bool) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!bool", Value: fmt.Sprint(value)}
}

func mapNode(pairs ...*yaml.Node) *yaml.Node {
	return &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Content: pairs}
}

// object is a Kubernetes object of a document, or of a List in it.
type object struct {
	document *document
	node     *yaml.Node
	parent   *yaml.Node // the items of the List, or nil
}

func (d *document) objects() []object {
	if d.root == nil || len(d.root.Content) == 0 {
		return nil
	}
	root := d.root.Content[0]
	if !strings.HasSuffix(text(root, "kind"), "List") || get(root, "items") == nil {
		return []object{{document: d, node: root}}
	}
	var all []object
	for _, item := range list(root, "items") {
		all = append(all, object{document: d, node: item, parent: get(root, "items")})
	}
	return all
}

// drop removes the object from the output.
func (o object) drop() {
	if o.parent == nil {
		o.document.dropped = true
		return
	}
	o.document.changed = true
	o.parent.Content = slices.DeleteFunc(o.parent.Content, func(n *yaml.Node) bool { return n == o.node })
	if len(o.parent.Content) == 0 {
		o.parent.Style = yaml.FlowStyle
	}
}

func (o object) kind() string { return text(o.node, "kind") }

// String is for people: Deployment shop/web.
func (o object) String() string {
	name := text(o.node, "metadata", "name")
	if name == "" {
		name = text(o.node, "metadata", "generateName")
	}
	if namespace := text(o.node, "metadata", "namespace"); namespace != "" {
		name = namespace + "/" + name
	}
	return o.kind() + " " + name
}

// pod is a pod, or the pod template of a workload.
type pod struct {
	object
	metadata, spec *yaml.Node
	path           string // of the spec
}

// pod returns false if the object has no pod template that this program knows.
func (o object) pod() (pod, bool) {
	var path []string
	switch o.kind() {
	case "Pod":
	case "Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "ReplicationController", "Job":
		path = []string{"spec", "template"}
	case "CronJob":
		path = []string{"spec", "jobTemplate", "spec", "template"}
	case "PodTemplate":
		path = []string{"template"}
	default:
		return pod{}, false
	}
	template := get(o.node, path...)
	spec := get(template, "spec")
	if spec == nil || spec.Kind != yaml.MappingNode {
		return pod{}, false
	}
	return pod{o, get(template, "metadata"), spec, strings.Join(append(path, "spec"), ".")}, true
}

func (p pod) volumes() []*yaml.Node { return list(p.spec, "volumes") }

// containers returns all containers that can mount a volume.
func (p pod) containers() (all []*yaml.Node) {
	for _, key := range []string{"initContainers", "containers", "ephemeralContainers"} {
		for _, container := range list(p.spec, key) {
			if container.Kind == yaml.MappingNode {
				all = append(all, container)
			}
		}
	}
	return all
}

// place names a volume in remarks.
func (p pod) place(volume *yaml.Node) string {
	return fmt.Sprintf("%s, %s.volumes[%s]", p.object, p.path, text(volume, "name"))
}
