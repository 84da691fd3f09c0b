package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/chartvalue"
	"github.com/flexstack/step-csi/issuer/policy"
	"github.com/flexstack/step-csi/issuer/ra"
	"github.com/flexstack/step-csi/issuer/stepca"
	"github.com/flexstack/step-csi/issuer/trust"
)

// The types of provisioners.
const (
	typeJWK = "jwk" // this process signs, with the key of a JWK provisioner
	typeX5C = "x5c" // this process signs, with a certificate that an X5C provisioner accepts
	typeRA  = "ra"  // the registration authority signs, after it has reviewed the token of the pod
)

type issuerFile struct {
	URL  string   `json:"url"`
	URLs []string `json:"urls"` // of one CA, in the order of preference, instead of URL
	serverTLSFile
	Fingerprint  string               `json:"fingerprint"`
	CABundleFile string               `json:"caBundleFile"`
	Provisioner  provisionerFile      `json:"provisioner"`
	Duration     issuer.LifetimeTexts `json:"duration"`
	Roots        struct {
		Refresh      string `json:"refresh"`
		Federation   bool   `json:"federation"`
		Pinned       bool   `json:"pinned"`
		Fingerprint  string `json:"fingerprint"`
		CABundleFile string `json:"caBundleFile"`
	} `json:"roots"`
	anchorsFile
	Policy policy.Rules `json:"policy"`
}

type provisionerFile struct {
	Type            string `json:"type"`
	Name            string `json:"name"`
	KeyID           string `json:"kid"`
	PasswordFile    string `json:"passwordFile"`
	KeyFile         string `json:"keyFile"`
	CertificateFile string `json:"certificateFile"`
	PrivateKeyFile  string `json:"privateKeyFile"`
	TokenFile       string `json:"tokenFile"`
	// RequireDisableRenewal refuses to sign while the provisioner lets step-ca renew
	// certificates for their holders.
	RequireDisableRenewal bool `json:"requireDisableRenewal"`
}

// The defaults of roots.refresh. A registration authority asks more often: nodes get
// the roots from it at their own intervals.
const (
	refreshRoots   = 5 * time.Minute
	refreshRootsRA = 30 * time.Second
)

// closingSigner is a signer that keeps connections open.
type closingSigner interface {
	issuer.Signer
	Close()
}

// configure makes the signer, and checks the rest. The roots are refreshed as often
// as the file says, or as otherwise says. The signer adds the CA's names to reserved.
func (f issuerFile) configure(name, directory string, otherwise time.Duration, reserved *policy.Reserved) (c configured, err error) {
	c.file = f
	if c.lifetimes, err = f.Duration.Parse(); err != nil {
		return c, err
	}
	if c.rootsRefresh, err = issuer.ParseDuration("roots.refresh", f.Roots.Refresh, otherwise); err != nil {
		return c, err
	}
	if c.additionalRoots, err = f.additionalRoots(directory); err != nil {
		return c, err
	}
	bundle, err := readBundle(directory, f.CABundleFile)
	if err != nil {
		// Report missing secrets, too: without it, an administrator would learn of them one
		// after the other.
		return c, append(mistakes{fmt.Errorf("%s: %w", chartvalue.Beside("caBundleFile"), err)}, f.Provisioner.unreadable(directory)...)
	}
	switch f.Provisioner.Type {
	case typeJWK, typeX5C:
		c.signer, err = f.caSigner(directory, bundle, reserved)
	case typeRA:
		c.signer, err = f.raSigner(name, directory, bundle)
	default:
		err = fmt.Errorf("provisioner.type: %q is unknown; use %s, %s or %s", f.Provisioner.Type, typeJWK, typeX5C, typeRA)
	}
	return c, err
}

// caSigner calls the CA itself.
func (f issuerFile) caSigner(directory string, bundle []byte, reserved *policy.Reserved) (closingSigner, error) {
	if err := f.Provisioner.checkKeys(); err != nil {
		return nil, err
	}
	if f.Roots.Fingerprint != "" || f.Roots.CABundleFile != "" {
		return nil, fmt.Errorf("roots.fingerprint and roots.caBundleFile: are for the type %s only; set the issuer's fingerprint or caBundleFile", typeRA)
	}
	serverRoots, err := f.serverRoots(directory)
	if err != nil {
		return nil, err
	}
	c := stepca.Config{
		URL:         f.URL,
		ServerRoots: serverRoots,
		Fingerprint: f.Fingerprint,
		CABundle:    bundle,
		Pinned:      f.Roots.Pinned,
		Provisioner: f.Provisioner.Name,
		KeyID:       f.Provisioner.KeyID,
		Federation:  f.Roots.Federation,
		Shown:       reserved.Learn,
	}
	if wrong := f.Provisioner.unreadable(directory); len(wrong) > 0 {
		return nil, wrong
	}
	for _, secret := range []struct {
		path string
		read *func() ([]byte, error)
	}{
		{f.Provisioner.PasswordFile, &c.Password},
		{f.Provisioner.KeyFile, &c.Key},
		{f.Provisioner.CertificateFile, &c.Certificate},
		{f.Provisioner.PrivateKeyFile, &c.PrivateKey},
	} {
		if secret.path != "" {
			*secret.read = secretFile(within(directory, secret.path))
		}
	}
	switch {
	case f.URL != "" && len(f.URLs) > 0:
		return nil, errors.New("urls: url is set, too; set one of them")
	case len(f.URLs) > 0:
		return stepca.NewFailover(c, f.URLs)
	}
	return stepca.New(c)
}

// checkKeys rejects keys of other types than the provisioner's, and missing ones.
func (f provisionerFile) checkKeys() error {
	for _, k := range []struct {
		key, value, kind string
	}{
		{"kid", f.KeyID, typeJWK},
		{"passwordFile", f.PasswordFile, typeJWK},
		{"keyFile", f.KeyFile, typeJWK},
		{"certificateFile", f.CertificateFile, typeX5C},
		{"privateKeyFile", f.PrivateKeyFile, typeX5C},
		{"tokenFile", f.TokenFile, typeRA},
	} {
		if k.value != "" && k.kind != f.Type {
			return fmt.Errorf("%s: is for the type %s only", chartvalue.Beside("provisioner."+k.key), k.kind)
		}
	}
	switch {
	case f.Type == typeJWK && f.PasswordFile == "" && f.KeyFile == "":
		return fmt.Errorf("%s: name the file with the password of the provisioner's key; or %s, if the CA does not keep this key",
			chartvalue.Beside("provisioner.passwordFile"), chartvalue.Beside("provisioner.keyFile"))
	case f.Type == typeX5C && f.CertificateFile == "":
		return fmt.Errorf("%s: name the file with the certificate that signs tokens, and with its intermediates", chartvalue.Beside("provisioner.certificateFile"))
	case f.Type == typeX5C && f.PrivateKeyFile == "":
		return fmt.Errorf("%s: name the file with the private key of the certificate", chartvalue.Beside("provisioner.privateKeyFile"))
	}
	return nil
}

// raSigner uses the authority's issuer of the same name, unless the file names
// another.
func (f issuerFile) raSigner(name, directory string, bundle []byte) (closingSigner, error) {
	if err := f.Provisioner.checkKeys(); err != nil {
		return nil, fmt.Errorf("%w; no node needs it any more", err)
	}
	if f.Provisioner.RequireDisableRenewal {
		return nil, errors.New("provisioner.requireDisableRenewal: write it into the configuration of the registration authority, which calls the CA")
	}
	if f.Roots.Federation {
		return nil, errors.New("roots.federation: the registration authority decides; write it into its configuration")
	}
	if len(f.URLs) > 0 {
		return nil, errors.New("urls: is for a CA; set url, because each address of the registration authority's name is one of its replicas")
	}
	if f.serverTLSFile != (serverTLSFile{}) {
		return nil, errors.New("serverTLS: the registration authority calls the CA; write it into its configuration")
	}
	if f.Provisioner.TokenFile == "" {
		return nil, errors.New("provisioner.tokenFile: name the file with the service-account token of the node plugin's own pod, for the audience " + issuer.TokenAudience)
	}
	if !f.Roots.Pinned && (f.Roots.Fingerprint != "" || f.Roots.CABundleFile != "") {
		return nil, errors.New("roots.fingerprint and roots.caBundleFile: have no effect without roots.pinned: true")
	}
	rootsBundle, err := readBundle(directory, f.Roots.CABundleFile)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", chartvalue.Beside("roots.caBundleFile"), err)
	}
	if wrong := f.Provisioner.unreadable(directory); len(wrong) > 0 {
		return nil, wrong
	}
	return ra.New(ra.Config{
		URL:              f.URL,
		Fingerprint:      f.Fingerprint,
		CABundle:         bundle,
		Pinned:           f.Roots.Pinned,
		RootsFingerprint: f.Roots.Fingerprint,
		RootsCABundle:    rootsBundle,
		Issuer:           cmp.Or(f.Provisioner.Name, name),
		Token:            secretFile(within(directory, f.Provisioner.TokenFile)),
	})
}

// readBundle reads the roots in PEM; none if there is no path. The errors have the path.
func readBundle(directory, path string) ([]byte, error) {
	if path == "" {
		return nil, nil
	}
	path = within(directory, path)
	bundle, err := readText(path)
	if err != nil {
		return nil, err
	}
	if _, err := trust.ParseBundle(bundle); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return bundle, nil
}

func within(directory, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(directory, path)
}

// unreadable returns an error for each file that cannot be read.
func (f provisionerFile) unreadable(directory string) (wrong mistakes) {
	for _, secret := range []struct{ key, path string }{
		{"passwordFile", f.PasswordFile},
		{"keyFile", f.KeyFile},
		{"certificateFile", f.CertificateFile},
		{"privateKeyFile", f.PrivateKeyFile},
		{"tokenFile", f.TokenFile},
	} {
		if secret.path == "" {
			continue
		}
		content, err := secretFile(within(directory, secret.path))()
		clear(content)
		if err != nil {
			wrong = append(wrong, fmt.Errorf("%s: %w", chartvalue.Beside("provisioner."+secret.key), err))
		}
	}
	return wrong
}

// secretFile returns a function that reads a password or a token, without the newline
// that editors put at the end.
func secretFile(path string) func() ([]byte, error) {
	return func() ([]byte, error) {
		secret, err := readText(path)
		if err != nil {
			return nil, err
		}
		return bytes.TrimRight(secret, "\r\n"), nil
	}
}
