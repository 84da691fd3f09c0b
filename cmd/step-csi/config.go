package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/net/idna"
	utiljson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/policy"
)

// configFile is the configuration as users write it: that of the node plugin, or
// that of the authority.
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

// config is what both configurations have in common, and can work.
type config struct {
	driverName, clusterDomain, trustDomain string
	allowShortNames                        bool
	issuers                                map[string]configured
}

// configured is an issuer before it is one: the two commands make different
// things of it.
type configured struct {
	signer closingSigner
	allow  issuer.Policy
	bounds attributes.Bounds

	rootsRefresh time.Duration
}

// loadConfig reads the configuration and has it checked; the errors have the
// file, the key and the reason. Nobody is asked.
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

// parseConfigFile is strict: an unknown, misspelt or repeated key is refused.
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

// check makes the configuration of a file; relative paths in it are relative to
// its directory.
func (f *configFile) check(directory string) (*config, error) {
	c := &config{
		driverName:      or(f.DriverName, "csi.step-ca.io"),
		clusterDomain:   or(f.ClusterDomain, "cluster.local"),
		allowShortNames: f.Policy.AllowShortNames,
		issuers:         map[string]configured{},
	}
	c.trustDomain = or(f.TrustDomain, c.clusterDomain)
	if err := checkDriverName(c.driverName); err != nil {
		return nil, fmt.Errorf("driverName: %w", err)
	}
	if len(f.Issuers) == 0 {
		return nil, errors.New("issuers: there is none; name at least one, such as default")
	}
	// Also where no issuer of this process decides: a mistake in it is one.
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

// allow is the issuer's own policy, or the common one. For an issuer at the
// authority, that decides.
func (f *configFile) allow(name string, i issuerFile, c *config) (issuer.Policy, error) {
	own := len(i.Policy.Validations) > 0
	switch {
	case i.Provisioner.Type == typeRA && own:
		return nil, errors.New("the authority decides what a pod may have; write the validations into its configuration")
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
		Reserved:        f.reserved(c.clusterDomain),
		Validations:     validations,
	})
	if err != nil {
		return nil, err
	}
	return made.Check, nil
}

// reserved are the hosts of all authorities, those in the cluster in all forms
// that a client may call them by.
func (f *configFile) reserved(clusterDomain string) (all []string) {
	hosts := f.Authority.names()
	for _, i := range f.Issuers {
		if u, err := url.Parse(i.URL); err == nil {
			hosts = append(hosts, u.Hostname())
		}
	}
	for _, host := range hosts {
		host = strings.ToLower(host)
		all = append(all, host)
		if service, inCluster := strings.CutSuffix(host, ".svc."+clusterDomain); inCluster {
			all = append(all, service+".svc", service)
		}
	}
	return all
}

// checkDriverName follows the CSI specification, GetPluginInfo: a DNS name.
func checkDriverName(name string) error {
	profile := idna.New(idna.MapForLookup(), idna.StrictDomainName(true), idna.VerifyDNSLength(true))
	if ascii, err := profile.ToASCII(name); err != nil || ascii != name || len(name) > 63 {
		return fmt.Errorf("%q is not a DNS name in lower case and ASCII, of at most 63 bytes", name)
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
