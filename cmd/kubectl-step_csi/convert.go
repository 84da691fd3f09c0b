package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/flexstack/step-csi/issuer/names"
)

const convertUsage = `Usage: kubectl step-csi convert -f FILE [flags]

Rewrites manifests so that pods get their certificates from step-csi, and prints them.
It converts, in pods and in the pod templates of workloads:

  - volumes of cert-manager's csi-driver
  - volumes of the Secret of a cert-manager Certificate among the manifests. The
    Certificate is left out if nothing else among them uses its Secret
  - autocert's annotations

All other documents stay as they are. Changed documents keep their comments. Lines that
begin with "# " on standard error name what was not translated, and what to do. The
program reads only files, and no cluster. Review the result, and check the names of the
certificates against the policy of step-csi.
`

// converter converts manifests. All manifests are read before the first is changed.
type converter struct {
	issuers       map[string]string // of step-csi, by the names of cert-manager's issuers
	namespace     string            // of objects without one; may be empty
	clusterDomain names.ClusterDomain
	remarks       *remarks
	certificates  []*certificate
	// stepIssuers are the names of StepIssuers that are not among the issuers.
	stepIssuers []string
	// skipped are the documents with aliases.
	skipped []*document
}

func convert(_ context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	var files []string
	var recursive, strict bool
	c := &converter{issuers: map[string]string{}, remarks: &remarks{w: stderr, notes: map[string]bool{}}}
	domain := "cluster.local"
	flags := flag.NewFlagSet("convert", flag.ContinueOnError)
	flags.Func("f", "read this `FILE` or directory, or - for standard input; repeat the flag for more", func(value string) error {
		files = append(files, value)
		return nil
	})
	flags.BoolVar(&recursive, "R", false, "read directories with all directories below them")
	flags.StringVar(&c.namespace, "n", "", "the `NAMESPACE` of objects that do not name one")
	flags.Func("issuer", "with `NAME=ISSUER`, cert-manager's issuer NAME becomes step-csi's ISSUER; repeat the flag for more. "+
		"Without it, a StepIssuer becomes \"default\" if it is the only one, and nothing of other issuers is converted", func(value string) error {
		from, to, _ := strings.Cut(value, "=")
		if from == "" || to == "" {
			return errors.New("write NAME=ISSUER")
		}
		c.issuers[from] = to
		return nil
	})
	flags.StringVar(&domain, "cluster-domain", domain, "the `DOMAIN` of the cluster, to recognize the names of Services")
	flags.BoolVar(&strict, "strict", false, "exit with status 1 if something was not translated")
	if err := parseFlags(flags, convertUsage, args, stdout, stderr); err != nil {
		return err
	}
	var err error
	if c.clusterDomain, err = names.ParseClusterDomain(domain); err != nil {
		fmt.Fprintf(stderr, "kubectl step-csi convert: --cluster-domain: %v\n", err)
		return errUsage
	}
	if len(files) == 0 {
		fmt.Fprintf(stderr, "kubectl step-csi convert: name a file with -f; see kubectl step-csi convert --help\n")
		return errUsage
	}
	all, err := read(files, recursive, stdin)
	if err != nil {
		return err
	}
	out, err := c.convert(all)
	if err != nil {
		return err
	}
	if _, err := io.WriteString(stdout, out); err != nil {
		return err
	}
	if strict && c.remarks.lost > 0 {
		return fmt.Errorf("not everything was translated; see the %d lines above that begin with \"# \" and not with \"# note\"", c.remarks.lost)
	}
	return nil
}

// read reads the documents of the files, in the order of the command line.
func read(files []string, recursive bool, stdin io.Reader) (all []*document, err error) {
	add := func(name string, data []byte) error {
		documents, err := documents(name, data)
		all = append(all, documents...)
		return err
	}
	for _, file := range files {
		if file == "-" {
			data, err := io.ReadAll(stdin)
			if err != nil {
				return nil, fmt.Errorf("standard input: %w", err)
			}
			if err := add("standard input", data); err != nil {
				return nil, err
			}
			continue
		}
		err := filepath.WalkDir(file, func(path string, entry fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case entry.IsDir() && path != file && !recursive:
				return fs.SkipDir
			case entry.IsDir():
				return nil
			case path != file && !slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(path)):
				return nil
			}
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			return add(path, data)
		})
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}

// convert returns the text of all documents, converted.
func (c *converter) convert(documents []*document) (string, error) {
	var objects []object
	for _, d := range documents {
		if d.root == nil {
			continue
		}
		if hasAlias(d.root) {
			c.skipped = append(c.skipped, d)
			if word := mentions(d.text); word != "" {
				c.remarks.lose(fmt.Sprintf("%s, document at line %d", d.file, d.line),
					"the document contains %s and YAML aliases (*name), and is unchanged; write out the aliases", word)
			}
			continue
		}
		objects = append(objects, d.objects()...)
	}
	for _, o := range objects {
		c.index(o)
	}
	for _, o := range objects {
		p, ok := o.pod()
		if !ok {
			c.unknown(o)
			continue
		}
		for _, volume := range p.volumes() {
			c.csiVolume(p, volume)
			c.secretVolume(p, volume)
		}
		c.autocert(p)
	}
	c.dropCertificates(objects)

	var out strings.Builder
	for i, d := range documents {
		text, err := d.output()
		if err != nil {
			return "", fmt.Errorf("%s, document at line %d: %w", d.file, d.line, err)
		}
		if out.Len() > 0 && text != "" && (i == 0 || documents[i-1].file != d.file) {
			if !strings.HasSuffix(out.String(), "\n") {
				out.WriteString("\n")
			}
			if !separator.MatchString(text) {
				out.WriteString("---\n")
			}
		}
		out.WriteString(text)
	}
	return out.String(), nil
}

// index takes a Certificate, and the issuers that the object names.
func (c *converter) index(o object) {
	if cert := c.certificate(o); cert != nil {
		c.certificates = append(c.certificates, cert)
		c.addStepIssuer(text(cert.spec, "issuerRef", "name"), text(cert.spec, "issuerRef", "group"))
	}
	if p, ok := o.pod(); ok {
		for _, volume := range p.volumes() {
			if text(volume, "csi", "driver") == certManagerDriver {
				attributes := get(volume, "csi", "volumeAttributes")
				c.addStepIssuer(text(attributes, certManagerPrefix+"issuer-name"), text(attributes, certManagerPrefix+"issuer-group"))
			}
		}
	}
}

// stepIssuerGroup is the API group of StepIssuer and StepClusterIssuer.
const stepIssuerGroup = "certmanager.step.sm"

func (c *converter) addStepIssuer(name, group string) {
	if group == stepIssuerGroup && c.issuers[name] == "" && !slices.Contains(c.stepIssuers, name) {
		c.stepIssuers = append(c.stepIssuers, name)
	}
}

// issuer returns step-csi's issuer for one of cert-manager's. It guesses only where no
// certificate can get another CA by that.
func (c *converter) issuer(place, name, group string) (string, error) {
	switch {
	case c.issuers[name] != "":
		return c.issuers[name], nil
	case group != stepIssuerGroup:
		return "", fmt.Errorf("the issuer %s is not a StepIssuer, and its certificates may be those of another CA than step-csi's; "+
			"if the CA is the same, use --issuer %s=default", names.Quote(name), cmp.Or(name, "NAME"))
	case len(c.stepIssuers) > 1:
		return "", fmt.Errorf("the manifests use several StepIssuers; for each, name the issuer of step-csi, such as --issuer %s=default", name)
	}
	c.remarks.note("StepIssuer "+name, "its certificates are now those of step-csi's issuer default; use --issuer %s=NAME for another", name)
	return "default", nil
}

// mentions returns what in the text this program would convert in a pod, or an empty string.
func mentions(text string) string {
	for _, word := range []string{certManagerDriver, autocertPrefix + "name", certificateGroup} {
		if strings.Contains(text, word) {
			return word
		}
	}
	return ""
}

// unknown remarks on what should be converted in an object without a pod template.
func (c *converter) unknown(o object) {
	if o.kind() == "Namespace" && text(o.node, "metadata", "labels", autocertLabel) != "" {
		c.remarks.lose(o.String(), "the label %s is for autocert; remove it when no pod of the namespace uses autocert any more", autocertLabel)
		return
	}
	if found := findScalar(o.node, func(value string) bool { return value == certManagerDriver || value == autocertPrefix+"name" }); found != "" {
		c.remarks.lose(o.String(), "the object contains %s, and is unchanged, because this program does not know the kind; "+
			"change it as docs/migrate-cert-manager.md says", found)
	}
}

// findScalar returns the first scalar that matches, keys included, or an empty string.
func findScalar(n *yaml.Node, match func(string) bool) string {
	if n.Kind == yaml.ScalarNode && match(n.Value) {
		return n.Value
	}
	for _, child := range n.Content {
		if found := findScalar(child, match); found != "" {
			return found
		}
	}
	return ""
}
