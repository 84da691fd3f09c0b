package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/policy"
	"github.com/flexstack/step-csi/issuer/ra"
	"github.com/flexstack/step-csi/issuer/stepca"
)

// The types of provisioners: who signs, and by what right.
const (
	typeJWK = "jwk" // this process, with the password of a JWK provisioner
	typeRA  = "ra"  // the registration authority, with the tokens of pods
)

type issuerFile struct {
	URL          string           `json:"url"`
	Fingerprint  string           `json:"fingerprint"`
	CABundleFile string           `json:"caBundleFile"`
	Provisioner  provisionerFile  `json:"provisioner"`
	Duration     durationFile     `json:"duration"`
	Roots        rootsFile        `json:"roots"`
	Policy       issuerPolicyFile `json:"policy"`
}

type provisionerFile struct {
	Type         string `json:"type"`
	Name         string `json:"name"`
	PasswordFile string `json:"passwordFile"`
	TokenFile    string `json:"tokenFile"`
}

type issuerPolicyFile struct {
	Validations []policy.Validation `json:"validations"`
}

type rootsFile struct {
	Refresh    string `json:"refresh"`
	Federation bool   `json:"federation"`
}

// refreshRoots is how often the CA is asked for its roots where nothing is said.
// An authority asks more often: what it knows gets to the nodes at their own pace.
const (
	refreshRoots   = 5 * time.Minute
	refreshRootsRA = 30 * time.Second
)

// refresh is how often to ask.
func (f rootsFile) refresh(otherwise time.Duration) (time.Duration, error) {
	if f.Refresh == "" {
		return otherwise, nil
	}
	every, err := time.ParseDuration(f.Refresh)
	if err != nil || every < time.Second {
		return 0, fmt.Errorf("roots.refresh: %q is not a duration of at least a second, such as 5m", f.Refresh)
	}
	return every, nil
}

type durationFile struct {
	Default string `json:"default"`
	Max     string `json:"max"`
	Min     string `json:"min"`
}

// closingSigner is a signer that keeps connections.
type closingSigner interface {
	issuer.Signer
	Close()
}

// configure makes the signer, and checks the rest. The roots are refreshed as often
// as the file says, or as otherwise says.
func (f issuerFile) configure(name, directory string, otherwise time.Duration) (configured, error) {
	bounds, err := f.Duration.bounds()
	if err != nil {
		return configured{}, err
	}
	refresh, err := f.Roots.refresh(otherwise)
	if err != nil {
		return configured{}, err
	}
	var bundle []byte
	if f.CABundleFile != "" {
		if bundle, err = os.ReadFile(within(directory, f.CABundleFile)); err != nil {
			return configured{}, fmt.Errorf("caBundleFile: %w", err)
		}
	}
	var signer closingSigner
	switch f.Provisioner.Type {
	case typeJWK:
		signer, err = f.jwkSigner(directory, bundle)
	case typeRA:
		signer, err = f.raSigner(name, directory, bundle)
	default:
		err = fmt.Errorf("provisioner.type: %q is unknown; %s and %s are what there is", f.Provisioner.Type, typeJWK, typeRA)
	}
	return configured{signer: signer, bounds: bounds, rootsRefresh: refresh}, err
}

func (f issuerFile) jwkSigner(directory string, bundle []byte) (closingSigner, error) {
	if f.Provisioner.TokenFile != "" {
		return nil, fmt.Errorf("provisioner.tokenFile: is for the type %s only", typeRA)
	}
	if f.Provisioner.PasswordFile == "" {
		return nil, errors.New("provisioner.passwordFile: name the file with the password of the provisioner's key")
	}
	passwordFile := within(directory, f.Provisioner.PasswordFile)
	password, err := readSecret(passwordFile)
	clear(password)
	if err != nil {
		return nil, fmt.Errorf("provisioner.passwordFile: %w", err)
	}
	return stepca.New(stepca.Config{
		URL:         f.URL,
		Fingerprint: f.Fingerprint,
		CABundle:    bundle,
		Provisioner: f.Provisioner.Name,
		Federation:  f.Roots.Federation,
		Password:    func() ([]byte, error) { return readSecret(passwordFile) },
	})
}

// raSigner asks the authority's issuer of the same name, unless it is told
// another.
func (f issuerFile) raSigner(name, directory string, bundle []byte) (closingSigner, error) {
	if f.Provisioner.PasswordFile != "" {
		return nil, fmt.Errorf("provisioner.passwordFile: is for the type %s only; no node needs it any more", typeJWK)
	}
	if f.Roots.Federation {
		return nil, errors.New("roots.federation: the authority decides; write it into its configuration")
	}
	if f.Provisioner.TokenFile == "" {
		return nil, errors.New("provisioner.tokenFile: name the file with the service-account token of the plugin's own pod, for the audience " + issuer.TokenAudience)
	}
	tokenFile := within(directory, f.Provisioner.TokenFile)
	token, err := readSecret(tokenFile)
	clear(token)
	if err != nil {
		return nil, fmt.Errorf("provisioner.tokenFile: %w", err)
	}
	return ra.New(ra.Config{
		URL:         f.URL,
		Fingerprint: f.Fingerprint,
		CABundle:    bundle,
		Issuer:      or(f.Provisioner.Name, name),
		Token:       func() ([]byte, error) { return readSecret(tokenFile) },
	})
}

func within(directory, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(directory, path)
}

// readSecret reads a password or a token, without the newline that editors put
// at the end.
func readSecret(path string) ([]byte, error) {
	secret, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if secret = bytes.TrimRight(secret, "\r\n"); len(secret) == 0 {
		return nil, fmt.Errorf("%s is empty", path)
	}
	return secret, nil
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
