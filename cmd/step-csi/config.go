package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/net/idna"
	utiljson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"github.com/flexstack/step-csi/driver"
	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/policy"
	"github.com/flexstack/step-csi/issuer/stepca"
)

// configFile is the configuration as users write it.
type configFile struct {
	DriverName    string                `json:"driverName"`
	ClusterDomain string                `json:"clusterDomain"`
	TrustDomain   string                `json:"trustDomain"`
	Issuers       map[string]issuerFile `json:"issuers"`
	Policy        policyFile            `json:"policy"`
}

type issuerFile struct {
	URL          string          `json:"url"`
	Fingerprint  string          `json:"fingerprint"`
	CABundleFile string          `json:"caBundleFile"`
	Provisioner  provisionerFile `json:"provisioner"`
	Duration     durationFile    `json:"duration"`
}

type provisionerFile struct {
	Type         string `json:"type"`
	Name         string `json:"name"`
	PasswordFile string `json:"passwordFile"`
}

type durationFile struct {
	Default string `json:"default"`
	Max     string `json:"max"`
	Min     string `json:"min"`
}

type policyFile struct {
	AllowShortNames bool                `json:"allowShortNames"`
	Validations     []policy.Validation `json:"validations"`
}

// config is a configuration that can work.
type config struct {
	driverName, clusterDomain, trustDomain string
	allowShortNames                        bool
	issuers                                map[string]driver.Issuer
	signers                                []*stepca.Signer
}

// loadConfig reads the configuration and refuses what cannot work, with the
// file, the key and the reason. The CA is not asked.
func loadConfig(path string) (*config, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	file, err := parseConfigFile(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	c, err := file.check(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
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
		issuers:         map[string]driver.Issuer{},
	}
	c.trustDomain = or(f.TrustDomain, c.clusterDomain)
	if err := checkDriverName(c.driverName); err != nil {
		return nil, fmt.Errorf("driverName: %w", err)
	}
	allow, err := policy.New(policy.Config{
		ClusterDomain:   c.clusterDomain,
		TrustDomain:     c.trustDomain,
		AllowShortNames: f.Policy.AllowShortNames,
		Validations:     f.Policy.Validations,
	})
	if err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	if len(f.Issuers) == 0 {
		return nil, errors.New("issuers: there is none; name at least one, such as default")
	}
	for name, i := range f.Issuers {
		if err := c.addIssuer(name, i, directory, allow.Check); err != nil {
			return nil, fmt.Errorf("issuers.%s.%w", name, err)
		}
	}
	return c, nil
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

func (c *config) addIssuer(name string, f issuerFile, directory string, allow issuer.Policy) error {
	bounds, err := f.Duration.bounds()
	if err != nil {
		return err
	}
	signer, err := f.signer(directory)
	if err != nil {
		return err
	}
	c.signers = append(c.signers, signer)
	i, err := issuer.New(issuer.Config{Signer: signer, Policy: allow})
	if err != nil {
		return err
	}
	c.issuers[name] = driver.Issuer{Issuer: i, Bounds: bounds}
	return nil
}

func (f issuerFile) signer(directory string) (*stepca.Signer, error) {
	if f.Provisioner.Type != "jwk" {
		return nil, fmt.Errorf("provisioner.type: %q is unknown; jwk is what there is", f.Provisioner.Type)
	}
	if f.Provisioner.PasswordFile == "" {
		return nil, errors.New("provisioner.passwordFile: name the file with the password of the provisioner's key")
	}
	var bundle []byte
	if f.CABundleFile != "" {
		var err error
		if bundle, err = os.ReadFile(within(directory, f.CABundleFile)); err != nil {
			return nil, fmt.Errorf("caBundleFile: %w", err)
		}
	}
	passwordFile := within(directory, f.Provisioner.PasswordFile)
	password, err := readPassword(passwordFile)
	clear(password)
	if err != nil {
		return nil, fmt.Errorf("provisioner.passwordFile: %w", err)
	}
	return stepca.New(stepca.Config{
		URL:         f.URL,
		Fingerprint: f.Fingerprint,
		CABundle:    bundle,
		Provisioner: f.Provisioner.Name,
		Password:    func() ([]byte, error) { return readPassword(passwordFile) },
	})
}

func within(directory, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(directory, path)
}

// readPassword leaves out the newline that editors put at the end.
func readPassword(path string) ([]byte, error) {
	password, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if password = bytes.TrimRight(password, "\r\n"); len(password) == 0 {
		return nil, fmt.Errorf("%s is empty", path)
	}
	return password, nil
}

// bounds are step-ca's own, where nothing else is said.
func (f durationFile) bounds() (attributes.Bounds, error) {
	b := attributes.Bounds{}
	for _, d := range []struct {
		key, text, otherwise string
		value                *time.Duration
	}{
		{"max", f.Max, "24h", &b.Max},
		{"min", f.Min, "5m", &b.Min},
		{"default", f.Default, or(f.Max, "24h"), &b.Default},
	} {
		value, err := time.ParseDuration(or(d.text, d.otherwise))
		if err != nil || value < time.Second {
			return b, fmt.Errorf("duration.%s: %q is not a duration of at least a second, such as 24h or 90m", d.key, d.text)
		}
		*d.value = value
	}
	switch {
	case b.Min > b.Max:
		return b, fmt.Errorf("duration.min: %s is longer than duration.max, %s", b.Min, b.Max)
	case b.Default < b.Min || b.Default > b.Max:
		return b, fmt.Errorf("duration.default: %s is not between duration.min, %s, and duration.max, %s", b.Default, b.Min, b.Max)
	}
	return b, nil
}

func (c *config) driverConfig(o options) driver.Config {
	return driver.Config{
		Name:            c.driverName,
		Version:         version(),
		NodeName:        o.nodeName,
		KubeletDir:      o.kubeletDir,
		Socket:          or(o.socket, filepath.Join(o.kubeletDir, "plugins", c.driverName, "csi.sock")),
		Register:        o.register,
		ClusterDomain:   c.clusterDomain,
		TrustDomain:     c.trustDomain,
		AllowShortNames: c.allowShortNames,
		Issuers:         c.issuers,
	}
}

func (c *config) close() {
	for _, signer := range c.signers {
		signer.Close()
	}
}
