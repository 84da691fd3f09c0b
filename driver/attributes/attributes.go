// Package attributes parses the volume attributes of a pod's spec. Any user who can
// create a pod can write them, so they are not trusted. The issuer's policy, not this
// package, decides whether a pod may have the requested names.
//
// The attributes, with their defaults:
//
//	issuer             an issuer of the configuration; "default"
//	service-names      comma-separated; each s gives s.<namespace>,
//	                   s.<namespace>.svc, s.<namespace>.svc.<cluster domain>,
//	                   and s itself where short names are allowed; not the first
//	                   one in a namespace that is named like a domain
//	dns-names          comma-separated DNS names
//	ip-sans            comma-separated IP addresses
//	uri-sans           comma-separated URIs
//	email-sans         comma-separated e-mail addresses
//	spiffe             add the SPIFFE ID of the pod's service account, as the
//	                   first URI; "true"
//	common-name        the subject's common name; the first DNS name with at most
//	                   64 bytes. If all DNS names are longer, the pod's name if a
//	                   controller made it. Otherwise, and without a DNS name, the
//	                   pod's UID
//	organizations      comma-separated values of the subject's field
//	organizational-units
//	                   the same
//	countries          the same, such as DE
//	provinces          the same
//	localities         the same
//	street-addresses   the same
//	postal-codes       the same
//	template-data      a JSON object for the X.509 template of the CA's provisioner
//	duration           the lifetime; the issuer's default, or the CA's
//	renew-before       how long before expiry to renew, at most nine tenths of the
//	                   lifetime; a third of the lifetime
//	key-type           an issuer.KeyType; "ecdsa-p256"
//	key-encoding       "pkcs8", "pkcs1" (RSA) or "sec1" (ECDSA); "pkcs8"
//	layout             names of the files: "default", or "spiffe", whose certificate
//	                   must be an X.509-SVID; "default"
//	reuse-private-key  keep the key at renewal; "false"
//	chain              what follows the leaf in a file: "leaf" (nothing), "full"
//	                   (the intermediates) or "full-with-root"; "full"
//	owner-uid          owner of the files; "0", which is root
//	fs-group           group of the files; the pod's fsGroup
//	file-mode          mode of the files; "0440" with a group, else "0444"
//	privatekey-mode    mode of the files that contain the private key; file-mode.
//	                   Without both: "0440" with a group, "0400" with an
//	                   owner-uid, else "0444"
//	revoke-on-delete   revoke when the pod is deleted; "false"
//	trust-only         only the files of the roots: no certificate and no private
//	                   key; "false"
//	pkcs12-profile     a keystore.Profile; "modern"
//	keystore-alias     alias of the private key in key stores; "certificate"
//	certificate-file   file of the leaf and its intermediates; "tls.crt"
//	privatekey-file    file of the private key; "tls.key"
//	ca-file            file of the roots; "ca.crt"
//	spiffe-bundle-file
//	                   file of the roots of the pod's own SPIFFE trust domain; none
//	bundle-file        file of the private key, the leaf and its intermediates, in
//	                   this order; none
//	certificate-der-file
//	                   file of the leaf in DER; none
//	privatekey-der-file
//	                   file of the private key in DER; none
//	ca-directory       directory with a file of each root, in PEM, under the names by
//	                   which OpenSSL searches for them; none
//	pkcs12-file        PKCS#12 file of the private key and its chain; none
//	pkcs12-truststore-file
//	                   PKCS#12 file of the roots; none
//	jks-file           JKS file of the private key and its chain; none
//	jks-truststore-file
//	                   JKS file of the roots; none
//	keystore-password-file
//	                   file of the password of these four files, if the plugin
//	                   generates it; "keystore-password" if there is one of them
//
// Names may contain ${POD_NAME}, ${POD_NAMESPACE}, ${POD_UID},
// ${SERVICE_ACCOUNT_NAME}, ${NODE_NAME}, ${CLUSTER_DOMAIN} and ${TRUST_DOMAIN}.
package attributes

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/flexstack/step-csi/driver/keystore"
	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
)

const (
	// maxSize limits the attributes in bytes of JSON. The driver keeps this JSON in
	// an extended attribute, which has room for 16 KiB.
	maxSize = 8 << 10
	// maxErrors is how many errors are reported at once, in an event of the pod with
	// its limited length.
	maxErrors = 5
)

// Config has the settings of the plugin that attributes depend on.
type Config struct {
	ClusterDomain names.ClusterDomain
	TrustDomain   spiffeid.TrustDomain
	// AllowShortNames adds the bare names to those that service-names gives.
	AllowShortNames bool
	// Issuers are the configured lifetimes of each issuer, Min and Max included.
	Issuers map[string]issuer.Lifetimes
}

// Attributes describes the requested volume.
type Attributes struct {
	Issuer  string
	Request issuer.Request
	// RenewBefore is how long before expiry to renew. Zero means a third of the
	// lifetime.
	RenewBefore     time.Duration
	KeyEncoding     KeyEncoding
	ReusePrivateKey bool
	Files           Files
	Chain           ChainLength
	// Owner is the user ID of the files' owner.
	Owner int
	// Group owns the files. Nil means root's group.
	Group *int
	// Mode lets the owner read. PrivateKeyMode is that of the files with the private key.
	Mode, PrivateKeyMode fs.FileMode
	RevokeOnDelete       bool
	// TrustOnly means that the volume has no certificate and no private key: only the names of
	// the files of the roots are set, and the Request is empty.
	TrustOnly bool
	// PKCS12Profile and KeyStoreAlias are empty without a file that they are for.
	PKCS12Profile keystore.Profile
	KeyStoreAlias string
}

// parser is the state of one Parse.
type parser struct {
	pod    issuer.Pod
	config Config
	result Attributes

	dns, services []names.DNSName
	spiffe        bool
	layout        Layout
}

// Parse parses the user's attributes of a volume for the pod; Identity returns
// both. mountGroup is the CSI volume_mount_group, which is the pod's fsGroup, or
// empty. The error names the keys to change, and how.
func Parse(values map[string]string, pod issuer.Pod, mountGroup string, c Config) (Attributes, error) {
	kept, _ := json.Marshal(values) // A map of strings can always be encoded.
	if len(kept) > maxSize {
		return Attributes{}, fmt.Errorf("the volume attributes have %d bytes as JSON; the limit is %d", len(kept), maxSize)
	}
	p := &parser{pod: pod, config: c, spiffe: true, result: Attributes{
		Issuer:      "default",
		KeyEncoding: PKCS8,
		Files:       Files{Certificate: "tls.crt", PrivateKey: "tls.key", CA: "ca.crt"},
		Chain:       FullChain,
		Request:     issuer.Request{KeyType: issuer.ECDSAP256},
	}}
	failed := unknownKeys(values)
	for _, a := range p.table() {
		value, given := values[a.key]
		if !given {
			continue
		}
		if value == "" {
			failed = append(failed, fmt.Errorf("%s: the value is empty; set one, or leave out the key", a.key))
		} else if err := a.set(value); err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", a.key, err))
		}
	}
	if len(failed) > 0 {
		return Attributes{}, joined(failed)
	}
	if p.result.TrustOnly {
		if err := p.finishTrustOnly(values); err != nil {
			return Attributes{}, err
		}
	}
	if err := p.finishLifetime(); err != nil {
		return Attributes{}, err
	}
	if err := p.finishLayout(values); err != nil {
		return Attributes{}, err
	}
	if err := p.finishFiles(mountGroup); err != nil {
		return Attributes{}, err
	}
	if p.result.TrustOnly {
		return p.result, nil // without names
	}
	if err := p.finishNames(); err != nil {
		return Attributes{}, err
	}
	if err := p.checkLayout(); err != nil {
		return Attributes{}, err
	}
	return p.result, nil
}

// CheckRenewBefore rejects a renewal that is due when less than a tenth of the lifetime is
// over: the pod would take certificates at the cost of others. Parse does not reject it,
// because volumes of earlier versions may have it. usual is the lifetime if the attributes
// set none; zero if it is not known.
func (a Attributes) CheckRenewBefore(usual time.Duration) error {
	lifetime := cmp.Or(a.Request.Duration, usual)
	if most := lifetime / 10 * 9; lifetime > 0 && a.RenewBefore > most {
		return fmt.Errorf("renew-before: %q is more than nine tenths of the duration of %s; use at most %s",
			a.RenewBefore, lifetime, most)
	}
	return nil
}

// joined returns the first errors in one line, as events and logs need it.
func joined(failed []error) error {
	var texts []string
	for _, err := range failed[:min(len(failed), maxErrors)] {
		texts = append(texts, err.Error())
	}
	if more := len(failed) - maxErrors; more > 0 {
		texts = append(texts, fmt.Sprintf("%d more", more))
	}
	return errors.New(strings.Join(texts, "; and "))
}

// finishLifetime checks the durations against the configured lifetimes of the issuer.
// Without a duration and a configured default, the request has none: the issuer decides.
func (p *parser) finishLifetime() error {
	allowed, known := p.config.Issuers[p.result.Issuer]
	if !known {
		return fmt.Errorf("issuer: %s is not an issuer in the plugin's configuration; it has %s",
			names.Quote(p.result.Issuer), strings.Join(slices.Sorted(maps.Keys(p.config.Issuers)), ", "))
	}
	duration := cmp.Or(p.result.Request.Duration, allowed.Default)
	switch {
	case duration == 0 || p.result.TrustOnly:
		return nil
	case allowed.Min > 0 && allowed.Max > 0 && (duration < allowed.Min || duration > allowed.Max):
		return fmt.Errorf("duration: %q is not between %s and %s, which the plugin's configuration allows for the issuer %s",
			duration, allowed.Min, allowed.Max, names.Quote(p.result.Issuer))
	case duration < allowed.Min:
		return fmt.Errorf("duration: %q is shorter than %s, the minimum in the plugin's configuration for the issuer %s",
			duration, allowed.Min, names.Quote(p.result.Issuer))
	case allowed.Max > 0 && duration > allowed.Max:
		return fmt.Errorf("duration: %q is longer than %s, the maximum in the plugin's configuration for the issuer %s",
			duration, allowed.Max, names.Quote(p.result.Issuer))
	case p.result.RenewBefore >= duration:
		return fmt.Errorf("renew-before: %q is not shorter than the duration of %s", p.result.RenewBefore, duration)
	}
	p.result.Request.Duration = duration
	return nil
}

// finishFiles checks that the files have different names and that the encoding fits
// the key. It sets the group and the modes if the user has not set them.
func (p *parser) finishFiles(mountGroup string) error {
	a := &p.result
	if err := a.finishKeyStores(); err != nil {
		return err
	}
	if err := a.Files.checkDistinct(); err != nil {
		return err
	}
	if err := a.checkKeyEncoding(); err != nil && !a.TrustOnly {
		return err
	}
	if a.PKCS12Profile == keystore.Legacy && a.Files.PKCS12 != "" && a.Request.KeyType == issuer.Ed25519 {
		return fmt.Errorf("pkcs12-profile: no program that needs %s reads a private key of the type %s; use %s, or another key-type",
			a.PKCS12Profile, a.Request.KeyType, keystore.Modern)
	}
	if a.Group == nil && mountGroup != "" {
		if err := set(&a.Group, parseGroup)(mountGroup); err != nil {
			return fmt.Errorf("volume_mount_group: %w", err)
		}
	}
	a.finishModes()
	return nil
}
