package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/flexstack/step-csi/issuer/policy"
	"github.com/flexstack/step-csi/issuer/ra/server"
)

// fileSources says where files come from, by path, such as from a key of a Secret. An
// administrator who reads a path in a container would have to look that up.
type fileSources map[string]string

// String implements flag.Value.
func (s fileSources) String() string { return "" }

// Set implements flag.Value.
func (s fileSources) Set(text string) error {
	path, source, ok := strings.Cut(text, "=")
	if !ok || path == "" || source == "" {
		return errors.New("write PATH=TEXT")
	}
	s[path] = source
	return nil
}

// explain adds their sources to the lines of the error that name files. Relative paths are
// relative to directory.
func (s fileSources) explain(err error, directory string) error {
	lines := strings.Split(err.Error(), "\n")
	for i, line := range lines {
		for path, source := range s {
			file := within(directory, path)
			switch {
			case !strings.Contains(line, file+":") && !strings.Contains(line, file+" "):
			case strings.Contains(line, syscall.ENOENT.Error()):
				lines[i] += ": there is no " + source
			default:
				lines[i] += ": the file is the " + source
			}
		}
	}
	return errors.New(strings.Join(lines, "\n"))
}

// reportCheck is the end of a command with --check-config: it prints what the configuration
// says, or returns what is wrong with it.
func (p *process) reportCheck(c *config, err error, stdout io.Writer) error {
	if err != nil {
		return p.fileSources.explain(err, filepath.Dir(p.config))
	}
	_, err = fmt.Fprintf(stdout, "%s: ok\n%s", p.config, c.summary())
	return err
}

// checkServer checks what a registration authority checks when it starts, but for the
// credentials by which a pod calls the API server.
func (c *config) checkServer() error {
	if k := c.authority.Kubernetes; k != (kubernetesFile{}) {
		api, err := k.apiServer()
		if err != nil {
			return err
		}
		if _, err := server.NewTokenReview(api); err != nil {
			return fmt.Errorf("authority.kubernetes: %w", err)
		}
	}
	checked, err := c.serverConfig(&server.TokenReview{}, newRegistry())
	if err != nil {
		return err
	}
	if _, err := server.New(checked); err != nil {
		return fmt.Errorf("authority.%w", err)
	}
	return nil
}

// summary is a few lines for people about the configuration.
func (c *config) summary() string {
	var b strings.Builder
	fmt.Fprintf(&b, "driver %s, cluster domain %s, trust domain %s\n", c.driverName, c.clusterDomain, c.trustDomain.Name())
	for _, name := range slices.Sorted(maps.Keys(c.issuers)) {
		fmt.Fprintf(&b, "issuer %s: %s\n", name, c.issuers[name].file.summary(c.common))
	}
	if a := c.authority; a.Plugin != "" {
		fmt.Fprintf(&b, "registration authority: its certificate is from the issuer %s; its callers are the node plugins of the service account %s\n", a.Issuer, a.Plugin)
	}
	return b.String()
}

// summary says who signs and by which policy, and which roots are added. common is the policy
// of issuers without one of their own.
func (f issuerFile) summary(common policy.Rules) string {
	return f.signs(common) + f.anchorsFile.summary()
}

func (f issuerFile) signs(common policy.Rules) string {
	at := cmp.Or(f.URL, strings.Join(f.URLs, ", "))
	if f.Provisioner.Type == typeRA {
		return "the registration authority at " + at + ", which has the policy"
	}
	rules := "the default policy"
	switch effective := common.Of(f.Policy); {
	case !f.Policy.IsEmpty():
		rules = "a policy of its own" + summarize(effective)
	case !common.IsEmpty():
		rules = "the common policy" + summarize(effective)
	}
	return fmt.Sprintf("%s provisioner %q at %s; %s", strings.ToUpper(f.Provisioner.Type), f.Provisioner.Name, at, rules)
}

// summarize says what the policy has, in parentheses.
func summarize(r policy.Rules) string {
	parts := []string{fmt.Sprintf("validations: %d", len(r.Validations))}
	if len(r.AllowSubjectFields) > 0 {
		parts = append(parts, "subject fields: "+strings.Join(r.AllowSubjectFields, ", "))
	}
	if r.AllowTemplateData {
		parts = append(parts, "template data")
	}
	text := " (" + strings.Join(parts, "; ") + ")"
	if warning := unrestricted(r); warning != "" {
		text += "; warning: " + warning
	}
	return text
}
