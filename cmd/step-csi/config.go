package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	utiljson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
	"github.com/flexstack/step-csi/issuer/policy"
)

// configFile is the configuration file of the node plugin or of the registration
// authority.
type configFile struct {
	DriverName    string                `json:"driverName"`
	ClusterDomain string                `json:"clusterDomain"`
	TrustDomain   string                `json:"trustDomain"`
	Issuers       map[string]issuerFile `json:"issuers"`
	Policy        policyFile            `json:"policy"`
	Authority     *raFile               `json:"authority"`
}

type policyFile struct {
	AllowShortNames bool                `json:"allowShortNames"`
	Validations     []policy.Validation `json:"validations"`
}

// config is the checked configuration that node plugin and registration authority
// have in common.
type config struct {
	driverName      string
	clusterDomain   names.ClusterDomain
	trustDomain     spiffeid.TrustDomain
	authorityNames  []names.DNSName
	reserved        []names.Host
	allowShortNames bool
	issuers         map[string]configured
}

// configured is the checked configuration of an issuer.
type configured struct {
	signer closingSigner
	allow  issuer.Policy
	bounds attributes.Bounds

	rootsRefresh time.Duration
}

// loadConfig reads and checks the configuration, without network access. The errors
// have the file, the key and the reason.
func loadConfig[T any](path string, check func(f *configFile, directory string) (T, error)) (T, error) {
	var none T
	data, err := os.ReadFile(path)
	if err != nil {
		return none, fmt.Errorf("read the configuration: %w", err)
	}
	file, err := parseConfigFile(data)
	if err != nil {
		return none, fmt.Errorf("%s: %w", path, err)
	}
	checked, err := check(file, filepath.Dir(path))
	if err != nil {
		return none, fmt.Errorf("%s: %w", path, err)
	}
	return checked, nil
}

// parseConfigFile rejects unknown, misspelt and repeated keys.
func parseConfigFile(data []byte) (*configFile, error) {
	converted, err := yaml.YAMLToJSONStrict(data)
	if err != nil {
		return nil, err
	}
	file := &configFile{}
	strict, err := utiljson.UnmarshalStrict(converted, file)
	if err = errors.Join(append([]error{err}, strict...)...); err != nil {
		return nil, err
	}
	return file, nil
}

// check checks the file. Relative paths in it are relative to directory.
func (f *configFile) check(directory string) (*config, error) {
	c := &config{
		driverName:      or(f.DriverName, "csi.step-ca.io"),
		allowShortNames: f.Policy.AllowShortNames,
		issuers:         map[string]configured{},
	}
	if len(f.Issuers) == 0 {
		return nil, errors.New("issuers: there is none; add at least one, such as default")
	}
	if err := f.parseNames(c); err != nil {
		return nil, err
	}
	// The policy is compiled even if no issuer uses it, to report errors in it.
	if _, err := f.policyFor("", f.Policy.Validations, c); err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	refresh := refreshRoots
	if f.Authority != nil {
		refresh = refreshRootsRA
	}
	for name, i := range f.Issuers {
		made, err := i.configure(name, directory, refresh)
		if err != nil {
			return nil, fmt.Errorf("issuers.%s.%w", name, err)
		}
		if made.allow, err = f.allow(name, i, c); err != nil {
			return nil, fmt.Errorf("issuers.%s.policy: %w", name, err)
		}
		c.issuers[name] = made
	}
	return c, nil
}

// parseNames parses the names in the file into c.
func (f *configFile) parseNames(c *config) (err error) {
	if err := checkDriverName(c.driverName); err != nil {
		return fmt.Errorf("driverName: %w", err)
	}
	if c.clusterDomain, err = names.ParseClusterDomain(or(f.ClusterDomain, "cluster.local")); err != nil {
		return fmt.Errorf("clusterDomain: %w", err)
	}
	if c.trustDomain, err = names.ParseTrustDomain(or(f.TrustDomain, c.clusterDomain.String())); err != nil {
		return fmt.Errorf("trustDomain: %w", err)
	}
	if c.authorityNames, err = names.ParseAll(names.ParseDNSName, f.Authority.names()...); err != nil {
		return fmt.Errorf("authority.names: %w", err)
	}
	// The names of the CAs and of the registration authority are not for pods.
	hosts := names.Texts(c.authorityNames)
	for _, i := range f.Issuers {
		if u, err := url.Parse(i.URL); err == nil && u.Host != "" { // The signer rejects other URLs.
			hosts = append(hosts, u.Hostname())
		}
	}
	if c.reserved, err = names.ParseAll(names.ParseHost, hosts...); err != nil {
		return fmt.Errorf("the host of an issuer or of the registration authority: %w", err)
	}
	return nil
}

// allow returns the issuer's own policy, or the common one. For an issuer at the
// registration authority, the authority's policy decides.
func (f *configFile) allow(name string, i issuerFile, c *config) (issuer.Policy, error) {
	own := len(i.Policy.Validations) > 0
	switch {
	case i.Provisioner.Type == typeRA && own:
		return nil, errors.New("the registration authority decides which names a pod may have; move the validations to its configuration")
	case i.Provisioner.Type == typeRA:
		return func(context.Context, issuer.Pod, issuer.Request) error { return nil }, nil
	case own:
		return f.policyFor(name, i.Policy.Validations, c)
	}
	return f.policyFor(name, f.Policy.Validations, c)
}

func (f *configFile) policyFor(name string, validations []policy.Validation, c *config) (issuer.Policy, error) {
	made, err := policy.New(policy.Config{
		ClusterDomain:   c.clusterDomain,
		TrustDomain:     c.trustDomain,
		AllowShortNames: c.allowShortNames,
		Issuer:          name,
		Reserved:        c.reserved,
		Validations:     validations,
	})
	if err != nil {
		return nil, err
	}
	return made.Check, nil
}

// checkDriverName checks the name as Kubernetes does for a CSIDriver object.
func checkDriverName(name string) error {
	const limit = 63
	if err := names.CheckSubdomain(name); err != nil {
		return err
	}
	if len(name) > limit {
		return fmt.Errorf("%s is longer than %d bytes", names.Quote(name), limit)
	}
	return nil
}

func or(value, otherwise string) string {
	if value == "" {
		return otherwise
	}
	return value
}

func (c *config) close() {
	for _, i := range c.issuers {
		i.signer.Close()
	}
}
