// Package attributes turns the volume attributes of a pod's spec into typed,
// checked values. Whoever can create a pod writes them, so nothing in them is
// trusted; but whether a pod may have the names that it asks for is decided
// elsewhere, by the issuer's policy.
//
// The attributes, and what holds without them:
//
//	issuer             the configured authority; "default"
//	service-names      comma-separated; each s gives s.<namespace>,
//	                   s.<namespace>.svc, s.<namespace>.svc.<cluster domain>,
//	                   and s itself where short names are allowed
//	dns-names          comma-separated DNS names
//	ip-sans            comma-separated IP addresses
//	uri-sans           comma-separated URIs
//	email-sans         comma-separated e-mail addresses
//	spiffe             add the SPIFFE ID of the pod's service account, as the
//	                   first URI; "true"
//	common-name        the subject's; the first DNS name that fits into 64 bytes,
//	                   else the pod's name if a controller made it, else its UID
//	duration           the lifetime; the issuer's default
//	renew-before       how long before expiry to renew; a third of the lifetime
//	key-type           an issuer.KeyType; "ecdsa-p256"
//	key-encoding       "pkcs8", "pkcs1" (RSA) or "sec1" (ECDSA); "pkcs8"
//	reuse-private-key  keep the key at renewal; "false"
//	certificate-file   file of the leaf and its intermediates; "tls.crt"
//	privatekey-file    file of the private key; "tls.key"
//	ca-file            file of the roots; "ca.crt"
//	fs-group           group of the files; the pod's fsGroup
//	file-mode          mode of the files; "0440" with a group, else "0444"
//	revoke-on-delete   revoke when the pod goes; "false"
//
// Names may contain ${POD_NAME}, ${POD_NAMESPACE}, ${POD_UID},
// ${SERVICE_ACCOUNT_NAME}, ${NODE_NAME}, ${CLUSTER_DOMAIN} and ${TRUST_DOMAIN}.
package attributes

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/flexstack/step-csi/issuer"
)

const (
	// maxSize bounds the attributes in bytes of JSON: as such they are kept in
	// an extended attribute, which has room for 16 KiB.
	maxSize = 8 << 10
	// maxProblems is how many are told at once. They are shown in an event of
	// the pod, which has little room.
	maxProblems = 5
)

// Bounds are the lifetimes that an issuer gives; Min and Max are included.
type Bounds struct{ Default, Min, Max time.Duration }

// Config is what attributes are checked against.
type Config struct {
	ClusterDomain, TrustDomain string
	// AllowShortNames makes service-names give the bare names, too.
	AllowShortNames bool
	// Issuers by name.
	Issuers map[string]Bounds
}

// Attributes is what a volume is to be.
type Attributes struct {
	Issuer  string
	Request issuer.Request
	// RenewBefore is how long before expiry to renew; zero means a third of the
	// lifetime.
	RenewBefore     time.Duration
	KeyEncoding     KeyEncoding
	ReusePrivateKey bool
	// The names of the files: distinct, and without a directory.
	CertificateFile, PrivateKeyFile, CAFile string
	// Group owns the files; nil leaves them to root's.
	Group *int
	// Mode lets root read, and nobody write.
	Mode           fs.FileMode
	RevokeOnDelete bool
}

// parser is the state of one Parse.
type parser struct {
	pod        issuer.Pod
	mountGroup string
	config     Config
	result     Attributes

	dns, services []string
	spiffe        bool
}

// Parse checks the user's attributes of a volume for the pod (see Identity for
// both). mountGroup is the CSI volume_mount_group, the pod's fsGroup, or empty.
// The error names the keys that must be changed, and how.
func Parse(values map[string]string, pod issuer.Pod, mountGroup string, c Config) (Attributes, error) {
	kept, _ := json.Marshal(values) // strings can always be
	if len(kept) > maxSize {
		return Attributes{}, fmt.Errorf("the volume attributes have %d bytes as JSON; at most %d are possible", len(kept), maxSize)
	}
	p := &parser{pod: pod, mountGroup: mountGroup, config: c, spiffe: true, result: Attributes{
		Issuer:          "default",
		KeyEncoding:     PKCS8,
		CertificateFile: "tls.crt",
		PrivateKeyFile:  "tls.key",
		CAFile:          "ca.crt",
		Request:         issuer.Request{KeyType: issuer.ECDSAP256},
	}}
	if failed := append(unknownKeys(values), p.setAll(values)...); len(failed) > 0 {
		return Attributes{}, joined(failed)
	}
	if err := p.finish(); err != nil {
		return Attributes{}, err
	}
	return p.result, nil
}

func (p *parser) setAll(values map[string]string) (failed []error) {
	for _, a := range table {
		value, given := values[a.key]
		if !given {
			continue
		}
		if value == "" {
			failed = append(failed, fmt.Errorf(`%s: "" is not a value; give one, or leave out the key`, a.key))
		} else if err := a.set(p, value); err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", a.key, err))
		}
	}
	return failed
}

// joined makes one line of errors: events and logs have no room for more.
func joined(failed []error) error {
	var texts []string
	for _, err := range failed[:min(len(failed), maxProblems)] {
		texts = append(texts, err.Error())
	}
	if more := len(failed) - maxProblems; more > 0 {
		texts = append(texts, fmt.Sprintf("%d more", more))
	}
	return errors.New(strings.Join(texts, "; and "))
}

// finish fills in what follows from several attributes, and checks what holds
// between them.
func (p *parser) finish() error {
	if err := p.finishLifetime(); err != nil {
		return err
	}
	if err := p.finishFiles(); err != nil {
		return err
	}
	if err := p.result.checkEncoding(); err != nil {
		return err
	}
	return p.finishNames()
}
