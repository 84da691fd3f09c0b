package main

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	utiljson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

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
	Policy        struct {
		AllowShortNames bool `json:"allowShortNames"`
		policyFile
	} `json:"policy"`
	Metrics struct {
		PerVolume bool `json:"perVolume"`
	} `json:"metrics"`
	Authority *authorityFile `json:"authority"`

	// Only node plugins have these.
	Renewal *struct {
		MinInterval string `json:"minInterval"`
	} `json:"renewal"`
	Limits *struct {
		VolumesPerPod  *int `json:"volumesPerPod"`
		VolumesPerNode int  `json:"volumesPerNode"`
	} `json:"limits"`
}

// policyFile is a policy: that of all issuers, or an issuer's own.
type policyFile struct {
	// The validations decide about these subject fields, and about template data. All others
	// are denied.
	AllowSubjectFields []string            `json:"allowSubjectFields"`
	AllowTemplateData  bool                `json:"allowTemplateData"`
	Validations        []policy.Validation `json:"validations"`
}

// isEmpty tells whether an issuer has no policy of its own.
func (f policyFile) isEmpty() bool {
	return len(f.Validations) == 0 && len(f.AllowSubjectFields) == 0 && !f.AllowTemplateData
}

// of returns an issuer's policy: its own, or this one. An own policy without validations has
// those of this one. It inherits nothing else: what this one's validations restrict, its own
// validations may know nothing about.
func (f policyFile) of(own policyFile) policyFile {
	if own.isEmpty() {
		return f
	}
	if len(own.Validations) == 0 {
		own.Validations = f.Validations
	}
	return own
}

// authorityFile is the part for the registration authority alone.
type authorityFile struct {
	Names  []string `json:"names"`
	Issuer string   `json:"issuer"`
	Plugin string   `json:"plugin"`
	Limits struct {
		Node limitFile `json:"node"`
		Pod  limitFile `json:"pod"`
	} `json:"limits"`
	// Events is false if running pods get no events.
	Events     *bool          `json:"events"`
	Kubernetes kubernetesFile `json:"kubernetes"`
}

type limitFile struct {
	Rate  float64 `json:"rate"`
	Burst int     `json:"burst"`
}

// kubernetesFile is how to reach the API server. It is empty in a pod of the cluster.
type kubernetesFile struct {
	URL       string `json:"url"`
	CAFile    string `json:"caFile"`
	TokenFile string `json:"tokenFile"`
}

// config is the checked configuration.
type config struct {
	driverName      string
	clusterDomain   names.ClusterDomain
	trustDomain     spiffeid.TrustDomain
	reserved        *policy.Reserved
	allowShortNames bool
	issuers         map[string]configured
	common          policyFile // the policy of issuers without one of their own

	// Only a node plugin has these.
	minInterval                   time.Duration
	volumesPerPod, volumesPerNode int
	metricsPerVolume              bool

	// Only the registration authority has these.
	authority      authorityFile
	authorityNames []names.DNSName
}

// configured is the checked configuration of an issuer.
type configured struct {
	file         issuerFile
	issuer       *issuer.Issuer
	signer       closingSigner
	allow        issuer.Policy
	lifetimes    issuer.Lifetimes
	rootsRefresh time.Duration
	// additionalRoots reads the additional roots; nil if there are none.
	additionalRoots func() ([]*x509.Certificate, error)
}

// loadConfig reads and checks the configuration, without network access. The errors
// have the file, the key and the reason.
func loadConfig(path string, check func(f *configFile, directory string) (*config, error)) (*config, error) {
	data, err := readText(path)
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	var c *config
	file, err := parseConfigFile(data)
	if err == nil {
		c, err = check(file, filepath.Dir(path))
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
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

// node checks the file of a node plugin. Relative paths are relative to directory.
func (f *configFile) node(directory string) (*config, error) {
	if f.Authority != nil {
		return nil, errors.New("authority: is for step-csi ra; a node plugin has none")
	}
	decides := len(f.Issuers) == 0 // reported by check
	for _, i := range f.Issuers {
		decides = decides || i.Provisioner.Type != typeRA
	}
	if !decides && (len(f.Policy.AllowSubjectFields) > 0 || f.Policy.AllowTemplateData) {
		return nil, errors.New("policy: allowSubjectFields and allowTemplateData have no effect, because all issuers are at a registration authority, which decides what a pod may have; " +
			"move them to its configuration")
	}
	c, err := f.check(directory, refreshRoots)
	c.metricsPerVolume = f.Metrics.PerVolume
	return c, errors.Join(err, f.parseLimits(c))
}

// parseLimits parses what bounds the volumes of pods into c.
func (f *configFile) parseLimits(c *config) (err error) {
	c.minInterval, c.volumesPerPod = time.Minute, 32
	if f.Renewal != nil {
		if c.minInterval, err = parseDuration("renewal.minInterval", f.Renewal.MinInterval, c.minInterval); err != nil {
			return err
		}
	}
	if f.Limits == nil {
		return nil
	}
	if f.Limits.VolumesPerPod != nil {
		c.volumesPerPod = *f.Limits.VolumesPerPod
	}
	if c.volumesPerNode = f.Limits.VolumesPerNode; c.volumesPerNode < 0 {
		return fmt.Errorf("limits.volumesPerNode: %d is below zero; 0 means no limit but memory", c.volumesPerNode)
	}
	if c.volumesPerPod < 1 {
		return fmt.Errorf("limits.volumesPerPod: %d is below one", c.volumesPerPod)
	}
	return nil
}

// ra checks the file of a registration authority.
func (f *configFile) ra(directory string) (*config, error) {
	if f.Authority == nil {
		return nil, errors.New("authority: is missing; see step-csi ra --help")
	}
	if f.Renewal != nil {
		return nil, errors.New("renewal: is for step-csi node; a registration authority has no volumes")
	}
	if f.Limits != nil {
		return nil, errors.New("limits: is for step-csi node; a registration authority has authority.limits")
	}
	if f.Metrics.PerVolume {
		return nil, errors.New("metrics.perVolume: is for step-csi node; a registration authority has no volumes")
	}
	for name, i := range f.Issuers {
		if i.Provisioner.Type == typeRA {
			return nil, fmt.Errorf("issuers.%s.provisioner.type: must be %s or %s, because a registration authority has the CA sign directly", name, typeJWK, typeX5C)
		}
		if i.anchorsFile != (anchorsFile{}) {
			return nil, fmt.Errorf("issuers.%s: additionalRootsFile and publicRoots are for step-csi node; a registration authority has no volumes", name)
		}
	}
	c, err := f.check(directory, refreshRootsRA)
	if err != nil {
		return nil, err
	}
	c.authority = *f.Authority
	c.authority.Issuer = cmp.Or(f.Authority.Issuer, "default")
	if _, known := c.issuers[c.authority.Issuer]; !known {
		return nil, fmt.Errorf("authority.issuer: there is no issuer %q", c.authority.Issuer)
	}
	return c, nil
}

// check checks what both have in common. refresh is the default of roots.refresh. The error
// has a line for each issuer that is wrong, and one for the policy.
func (f *configFile) check(directory string, refresh time.Duration) (*config, error) {
	c := &config{allowShortNames: f.Policy.AllowShortNames, issuers: map[string]configured{}, common: f.Policy.policyFile}
	if len(f.Issuers) == 0 {
		return c, errors.New("issuers: there is none; add at least one, such as default")
	}
	if err := f.parseNames(c); err != nil {
		return c, err
	}
	var wrong []error
	// The policy is compiled even if no issuer uses it, to report errors in it.
	_, policyErr := c.policy("", c.common)
	if policyErr != nil {
		wrong = append(wrong, fmt.Errorf("policy: %w", policyErr))
	}
	keys, public := issuer.NewKeyGenerator(), sync.OnceValues(publicRoots)
	for _, name := range slices.Sorted(maps.Keys(f.Issuers)) {
		i := f.Issuers[name]
		made, err := i.configure(name, directory, refresh, c.reserved)
		for _, err := range each(err) {
			wrong = append(wrong, fmt.Errorf("issuers.%s.%w", name, err))
		}
		if policyErr == nil || !i.Policy.isEmpty() {
			var policyErr error
			if made.allow, policyErr = c.allow(name, i); policyErr != nil {
				wrong = append(wrong, fmt.Errorf("issuers.%s.policy: %w", name, policyErr))
			}
		}
		if len(wrong) > 0 {
			continue
		}
		own := issuer.Config{
			Signer: made.signer, Policy: made.allow, Keys: keys, RequireDisableRenewal: i.Provisioner.RequireDisableRenewal, Lifetimes: made.lifetimes,
			AdditionalRoots: made.additionalRoots,
		}
		if i.PublicRoots {
			if own.PublicRoots, err = public(); err != nil {
				wrong = append(wrong, fmt.Errorf("issuers.%s.publicRoots: %w", name, err))
			}
		}
		if made.issuer, err = issuer.New(own); err != nil {
			wrong = append(wrong, fmt.Errorf("issuers.%s: %w", name, err))
		}
		c.issuers[name] = made
	}
	return c, errors.Join(wrong...)
}

// mistakes are several errors in the configuration of one issuer.
type mistakes []error

// Error has a line for each.
func (m mistakes) Error() string { return errors.Join(m...).Error() }

// Unwrap is for errors.Is and errors.As.
func (m mistakes) Unwrap() []error { return m }

// each returns several mistakes, or the one error if there is one.
func each(err error) []error {
	switch several, ok := err.(mistakes); {
	case ok:
		return several
	case err != nil:
		return []error{err}
	}
	return nil
}

// parseNames parses the names in the file into c.
func (f *configFile) parseNames(c *config) (err error) {
	const maxDriverName = 63 // of a CSIDriver object, in bytes
	c.driverName = cmp.Or(f.DriverName, "csi.step-ca.io")
	if err := names.CheckSubdomain(c.driverName); err != nil {
		return fmt.Errorf("driverName: %w", err)
	}
	if len(c.driverName) > maxDriverName {
		return fmt.Errorf("driverName: %s is longer than %d bytes", names.Quote(c.driverName), maxDriverName)
	}
	if c.clusterDomain, err = names.ParseClusterDomain(cmp.Or(f.ClusterDomain, "cluster.local")); err != nil {
		return fmt.Errorf("clusterDomain: %w", err)
	}
	if c.trustDomain, err = names.ParseTrustDomain(cmp.Or(f.TrustDomain, c.clusterDomain.String())); err != nil {
		return fmt.Errorf("trustDomain: %w", err)
	}
	if f.Authority != nil {
		if c.authorityNames, err = names.ParseAll(names.ParseDNSName, f.Authority.Names...); err != nil {
			return fmt.Errorf("authority.names: %w", err)
		}
	}
	c.reserved, err = f.reserve(c)
	return err
}

// reserve returns the names that no pod may have: those of the CAs, of the registration
// authority, and of the API server.
func (f *configFile) reserve(c *config) (*policy.Reserved, error) {
	hosts, err := names.ParseAll(names.ParseHost, names.Texts(c.authorityNames)...)
	if err != nil {
		return nil, fmt.Errorf("authority.names: %w", err)
	}
	var urls []string
	for _, i := range f.Issuers {
		urls = append(append(urls, i.URL), i.URLs...)
	}
	if f.Authority != nil {
		urls = append(urls, f.Authority.Kubernetes.URL)
	}
	for _, text := range urls {
		u, err := url.Parse(strings.TrimSpace(text))
		if err != nil {
			continue // the code that uses the URL rejects it
		}
		if host, err := names.ParseHost(u.Hostname()); err == nil {
			hosts = append(hosts, host)
		}
	}
	if host, err := names.ParseHost(kubernetesHost()); err == nil {
		hosts = append(hosts, host)
	}
	return policy.NewReserved(c.clusterDomain, hosts...), nil
}

// kubernetesHost returns the host of the API server, which the kubelet sets in every
// container. It is empty outside of a pod.
func kubernetesHost() string { return os.Getenv("KUBERNETES_SERVICE_HOST") }

// allow returns the issuer's own policy, or the common one. For an issuer at the
// registration authority, the authority's policy decides.
func (c *config) allow(name string, i issuerFile) (issuer.Policy, error) {
	switch {
	case i.Provisioner.Type == typeRA && !i.Policy.isEmpty():
		return nil, errors.New("the registration authority decides what a pod may have; move this policy to its configuration")
	case i.Provisioner.Type == typeRA:
		return func(context.Context, issuer.Pod, issuer.Request) error { return nil }, nil
	}
	return c.policy(name, c.common.of(i.Policy))
}

func (c *config) policy(name string, f policyFile) (issuer.Policy, error) {
	p, err := policy.New(policy.Config{
		ClusterDomain:      c.clusterDomain,
		TrustDomain:        c.trustDomain,
		AllowShortNames:    c.allowShortNames,
		AllowSubjectFields: f.AllowSubjectFields,
		AllowTemplateData:  f.AllowTemplateData,
		Issuer:             name,
		Reserved:           c.reserved,
		Validations:        f.Validations,
	})
	if err != nil {
		return nil, err
	}
	return p.Check, nil
}

func (c *config) close() {
	for _, i := range c.issuers {
		i.signer.Close()
	}
}
