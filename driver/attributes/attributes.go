// Package attributes turns the volume attributes of a pod's spec into typed,
// checked values. Whoever can create a pod writes them, so nothing in them is
// trusted; but whether a pod may have the names that it asks for is decided
// elsewhere, by the issuer's policy.
package attributes

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/agext/levenshtein"

	"github.com/flexstack/step-csi/issuer"
)

const (
	// maxSize bounds the attributes in bytes: they are kept in an extended
	// attribute, which has room for 16 KiB.
	maxSize = 8 << 10
	// maxNames bounds the names in one certificate. Public CAs allow as many.
	maxNames = 100
)

// Bounds are the lifetimes that an issuer gives.
type Bounds struct{ Default, Min, Max time.Duration }

// Config is what attributes are checked against.
type Config struct {
	ClusterDomain, TrustDomain string
	// AllowShortNames makes service-names give the bare names, too.
	AllowShortNames bool
	// Issuers by name.
	Issuers map[string]Bounds
}

// KeyEncoding is the ASN.1 structure that a private key is written in.
type KeyEncoding string

// The encodings: PKCS8 is for all keys, PKCS1 for RSA and SEC1 for ECDSA.
const (
	PKCS8 KeyEncoding = "pkcs8"
	PKCS1 KeyEncoding = "pkcs1"
	SEC1  KeyEncoding = "sec1"
)

// Attributes is what a volume is to be.
type Attributes struct {
	Issuer  string
	Request issuer.Request
	// RenewBefore is how long before expiry to renew; zero means a third of the
	// lifetime.
	RenewBefore     time.Duration
	KeyEncoding     KeyEncoding
	ReusePrivateKey bool
	// The names of the files.
	CertificateFile, PrivateKeyFile, CAFile string
	// Group owns the files; nil leaves them to root's.
	Group          *int
	Mode           fs.FileMode
	RevokeOnDelete bool
}

// parser is the state of one Parse.
type parser struct {
	pod        issuer.Pod
	mountGroup string
	config     Config
	values     map[string]string
	result     Attributes

	dns, services []string
	commonName    string
	spiffe        bool
}

// attribute is a key with its meaning. set is called with the key's value if
// the user gave one.
type attribute struct {
	key string
	set func(p *parser, value string) error
}

// table is every key that users may write. The order is the one in which errors
// are reported.
var table = []attribute{
	{"issuer", (*parser).setIssuer},
	{"service-names", (*parser).setServiceNames},
	{"dns-names", (*parser).setDNSNames},
	{"ip-sans", (*parser).setIPAddresses},
	{"uri-sans", (*parser).setURIs},
	{"email-sans", (*parser).setEmailAddresses},
	{"spiffe", func(p *parser, v string) (err error) { p.spiffe, err = parseBool(v); return err }},
	{"common-name", (*parser).setCommonName},
	{"duration", (*parser).setDuration},
	{"renew-before", (*parser).setRenewBefore},
	{"key-type", (*parser).setKeyType},
	{"key-encoding", (*parser).setKeyEncoding},
	{"reuse-private-key", func(p *parser, v string) (err error) { p.result.ReusePrivateKey, err = parseBool(v); return err }},
	{"certificate-file", func(p *parser, v string) error { p.result.CertificateFile = v; return checkFileName(v) }},
	{"privatekey-file", func(p *parser, v string) error { p.result.PrivateKeyFile = v; return checkFileName(v) }},
	{"ca-file", func(p *parser, v string) error { p.result.CAFile = v; return checkFileName(v) }},
	{"fs-group", (*parser).setGroup},
	{"file-mode", (*parser).setMode},
	{"revoke-on-delete", func(p *parser, v string) (err error) { p.result.RevokeOnDelete, err = parseBool(v); return err }},
}

// Keys lists the keys that users may write.
func Keys() []string {
	keys := make([]string, len(table))
	for i, a := range table {
		keys[i] = a.key
	}
	return keys
}

// Parse checks the user's attributes of a volume for the pod. mountGroup is the
// CSI volume_mount_group, the pod's fsGroup, or empty. The error names every
// key that must be changed.
func Parse(values map[string]string, pod issuer.Pod, mountGroup string, c Config) (Attributes, error) {
	p := &parser{pod: pod, mountGroup: mountGroup, config: c, values: values, spiffe: true, result: Attributes{
		Issuer:          "default",
		KeyEncoding:     PKCS8,
		CertificateFile: "tls.crt",
		PrivateKeyFile:  "tls.key",
		CAFile:          "ca.crt",
		Request:         issuer.Request{KeyType: issuer.ECDSAP256},
	}}
	if err := p.checkKeys(); err != nil {
		return Attributes{}, err
	}
	var failed []error
	for _, a := range table {
		value, given := values[a.key]
		if !given {
			continue
		}
		if err := a.set(p, value); err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", a.key, err))
		}
	}
	if err := errors.Join(failed...); err != nil {
		return Attributes{}, err
	}
	if err := p.finish(); err != nil {
		return Attributes{}, err
	}
	return p.result, nil
}

// checkKeys refuses keys that nobody reads.
func (p *parser) checkKeys() error {
	size := 0
	var failed []error
	for _, key := range slices.Sorted(maps.Keys(p.values)) {
		size += len(key) + len(p.values[key])
		if !slices.Contains(Keys(), key) {
			failed = append(failed, unknownKey(key))
		}
	}
	if size > maxSize {
		return fmt.Errorf("the volume attributes have %d bytes; at most %d are possible", size, maxSize)
	}
	return errors.Join(failed...)
}

// unknownKey names the known key that was probably meant.
func unknownKey(key string) error {
	if _, plain, found := strings.Cut(key, "/"); found && slices.Contains(Keys(), plain) {
		return fmt.Errorf("%s: write %s, without the part before the slash", quote(key), plain)
	}
	nearest := slices.MaxFunc(Keys(), func(a, b string) int {
		return int(1000 * (levenshtein.Similarity(key, a, nil) - levenshtein.Similarity(key, b, nil)))
	})
	if levenshtein.Similarity(key, nearest, nil) >= 0.6 {
		return fmt.Errorf("%s is not a volume attribute; %s is", quote(key), nearest)
	}
	return fmt.Errorf("%s is not a volume attribute; these are: %s", quote(key), strings.Join(Keys(), ", "))
}

// finish fills in what follows from several attributes, and checks what holds
// between them.
func (p *parser) finish() error {
	bounds, known := p.config.Issuers[p.result.Issuer]
	if !known {
		return fmt.Errorf("issuer: there is none called %s in the plugin's configuration; there is %s",
			quote(p.result.Issuer), strings.Join(slices.Sorted(maps.Keys(p.config.Issuers)), ", "))
	}
	if err := p.finishDurations(bounds); err != nil {
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

func (p *parser) setIssuer(value string) error {
	if value == "" {
		return errors.New("is empty; leave it out for the issuer called default")
	}
	p.result.Issuer = value
	return nil
}

func (p *parser) setDuration(value string) (err error) {
	p.result.Request.Duration, err = parseDuration(value)
	return err
}

func (p *parser) setRenewBefore(value string) (err error) {
	p.result.RenewBefore, err = parseDuration(value)
	return err
}

func parseDuration(value string) (time.Duration, error) {
	d, err := time.ParseDuration(value)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("%s is not a duration, such as 24h or 90m", quote(value))
	}
	return d, nil
}

func (p *parser) finishDurations(bounds Bounds) error {
	duration := &p.result.Request.Duration
	if *duration == 0 {
		*duration = bounds.Default
	}
	if *duration < bounds.Min || *duration > bounds.Max {
		return fmt.Errorf("duration: %s is not between %s and %s, which the plugin's configuration allows for the issuer %s",
			*duration, bounds.Min, bounds.Max, p.result.Issuer)
	}
	if p.result.RenewBefore >= *duration {
		return fmt.Errorf("renew-before: %s is not shorter than the duration of %s", p.result.RenewBefore, *duration)
	}
	return nil
}

func (p *parser) setKeyType(value string) error {
	p.result.Request.KeyType = issuer.KeyType(value)
	return oneOf(issuer.KeyType(value), issuer.KeyTypes()...)
}

func (p *parser) setKeyEncoding(value string) error {
	p.result.KeyEncoding = KeyEncoding(value)
	return oneOf(p.result.KeyEncoding, PKCS8, PKCS1, SEC1)
}

func (a Attributes) checkEncoding() error {
	family, _, _ := strings.Cut(string(a.Request.KeyType), "-")
	switch {
	case a.KeyEncoding == PKCS1 && family != "rsa":
		return fmt.Errorf("key-encoding: pkcs1 is for RSA keys, and key-type is %s; use pkcs8", a.Request.KeyType)
	case a.KeyEncoding == SEC1 && family != "ecdsa":
		return fmt.Errorf("key-encoding: sec1 is for ECDSA keys, and key-type is %s; use pkcs8", a.Request.KeyType)
	}
	return nil
}

func parseBool(value string) (bool, error) {
	return value == "true", oneOf(value, "true", "false")
}

func oneOf[T ~string](value T, allowed ...T) error {
	if slices.Contains(allowed, value) {
		return nil
	}
	texts := make([]string, len(allowed))
	for i, a := range allowed {
		texts[i] = string(a)
	}
	return fmt.Errorf("%s is none of %s", quote(string(value)), strings.Join(texts, ", "))
}

// quote shows a value without letting it spoil a log or a terminal.
func quote(value string) string {
	const most = 80
	if len(value) > most {
		return fmt.Sprintf("%q…", value[:most])
	}
	return fmt.Sprintf("%q", value)
}

// names are the certificate's names as step-ca's token carries them: strings.
func names(r issuer.Request) (all []string) {
	all = append(all, r.DNSNames...)
	all = append(all, texts(r.IPAddresses, netip.Addr.String)...)
	all = append(all, texts(r.URIs, (*url.URL).String)...)
	return append(all, r.EmailAddresses...)
}

func texts[T any](values []T, text func(T) string) []string {
	all := make([]string, len(values))
	for i, v := range values {
		all[i] = text(v)
	}
	return all
}
