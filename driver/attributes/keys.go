package attributes

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/agext/levenshtein"

	"github.com/flexstack/step-csi/driver/keystore"
	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
)

// attribute is a key that users may write. set parses its value.
type attribute struct {
	key string
	set func(value string) error
}

// table has all attributes, in the order in which errors are reported.
func (p *parser) table() []attribute {
	a, r := &p.result, &p.result.Request
	table := []attribute{
		{"issuer", func(value string) error { a.Issuer = value; return nil }},
		{"service-names", set(&p.services, listOf(p, parseServiceName))},
		{"dns-names", set(&p.dns, listOf(p, parseDNSName))},
		{"ip-sans", set(&r.IPAddresses, listOf(p, names.ParseIP))},
		{"uri-sans", set(&r.URIs, listOf(p, names.ParseURI))},
		{"email-sans", set(&r.EmailAddresses, listOf(p, names.ParseEmailAddress))},
		{"spiffe", set(&p.spiffe, parseBool)},
		{"common-name", set(&r.CommonName, p.parseCommonName)},
		{"organizations", set(&r.Subject.Organizations, listOf(p, names.ParseOrganization))},
		{"organizational-units", set(&r.Subject.OrganizationalUnits, listOf(p, names.ParseOrganization))},
		{"countries", set(&r.Subject.Countries, listOf(p, names.ParseCountry))},
		{"provinces", set(&r.Subject.Provinces, listOf(p, names.ParseProvince))},
		{"localities", set(&r.Subject.Localities, listOf(p, names.ParseLocality))},
		{"street-addresses", set(&r.Subject.StreetAddresses, listOf(p, names.ParseStreetAddress))},
		{"postal-codes", set(&r.Subject.PostalCodes, listOf(p, names.ParsePostalCode))},
		{"template-data", set(&r.TemplateData, issuer.ParseTemplateData)},
		{"duration", set(&r.Duration, parseDuration)},
		{"renew-before", set(&a.RenewBefore, parseDuration)},
		{"key-type", set(&r.KeyType, oneOf(issuer.KeyTypes()...))},
		{"key-encoding", set(&a.KeyEncoding, oneOf(PKCS8, PKCS1, SEC1))},
		{"layout", set(&p.layout, oneOf(DefaultLayout, SPIFFELayout))},
		{"reuse-private-key", set(&a.ReusePrivateKey, parseBool)},
		{"chain", set(&a.Chain, oneOf(LeafOnly, FullChain, WithRoot))},
		{"owner-uid", set(&a.Owner, parseID("user"))},
		{"fs-group", set(&a.Group, parseGroup)},
		{"file-mode", set(&a.Mode, parseMode)},
		{"privatekey-mode", set(&a.PrivateKeyMode, parseMode)},
		{"revoke-on-delete", set(&a.RevokeOnDelete, parseBool)},
		{"trust-only", set(&a.TrustOnly, parseBool)},
		{"pkcs12-profile", set(&a.PKCS12Profile, oneOf(keystore.Modern, keystore.Legacy))},
		{"keystore-alias", set(&a.KeyStoreAlias, parseAlias)},
	}
	for _, file := range a.Files.attributes() {
		table = append(table, attribute{file.key, set(file.name, parseFileName)})
	}
	return table
}

func set[T any](field *T, parse func(string) (T, error)) func(string) error {
	return func(value string) (err error) {
		*field, err = parse(value)
		return err
	}
}

// Keys returns the keys of all attributes.
func Keys() (keys []string) {
	for _, a := range (&parser{}).table() {
		keys = append(keys, a.key)
	}
	return keys
}

// certManager is the prefix of the keys of cert-manager's csi-driver.
// See https://cert-manager.io/docs/usage/csi-driver/#supported-volume-attributes
const certManager = "csi.cert-manager.io/"

// unknownKeys rejects keys that the driver does not know. The errors leave out
// their values: one may be the password of a key store. One error lists the known keys.
func unknownKeys(values map[string]string) (failed []error) {
	known := Keys()
	list := "; these are: " + strings.Join(known, ", ")
	for _, key := range slices.Sorted(maps.Keys(values)) {
		if slices.Contains(known, key) {
			continue
		}
		text := suggestion(key, known)
		if text == unknown {
			text += list
			list = ""
		}
		failed = append(failed, fmt.Errorf("%s%s", names.Quote(key), text))
	}
	return failed
}

// unknown is the suggestion for a key that is like none of the known keys.
const unknown = " is not a volume attribute"

// isPassword tells whether the user probably means a password by the key.
func isPassword(key string) bool {
	key = strings.ToLower(key)
	return strings.Contains(key, "passw") && !strings.Contains(key, "file") || strings.HasSuffix(key, "storepass") || strings.Contains(key, "passphrase")
}

// suggestion says which of the known keys the user probably meant.
func suggestion(key string, known []string) string {
	if _, plain, found := strings.Cut(key, "/"); found && slices.Contains(known, plain) {
		return fmt.Sprintf(": write %s, without the part before the slash", plain)
	}
	switch key {
	case certManager + "issuer-name":
		return ": write issuer"
	case certManager + "organizationalunits":
		return ": write organizational-units"
	case certManager + "streetaddresses":
		return ": write street-addresses"
	case certManager + "postalcodes":
		return ": write postal-codes"
	case certManager + "key-algorithm", certManager + "key-size":
		return ": write key-type"
	case "keystore", "keystore-file":
		return unknown + "; pkcs12-file, jks-file are"
	case certManager + "pkcs12-enable", certManager + "pkcs12-filename":
		return ": write pkcs12-file, with a file name such as keystore.p12"
	}
	if isPassword(key) {
		return ": this driver has no such attribute; leave it out, because everybody who can read the pod could read the password: " +
			"the node plugin generates one and writes it to the file keystore-password in the volume; to choose it, put it into a Secret under the key keystore-password, and name the Secret in nodePublishSecretRef"
	}
	if strings.HasPrefix(key, certManager) {
		return ": this driver has no such attribute; leave it out"
	}
	longer := slices.DeleteFunc(slices.Clone(known), func(known string) bool { return !abbreviates(key, known) })
	switch len(longer) {
	case 1:
		return fmt.Sprintf("%s; %s is", unknown, longer[0])
	case 2, 3, 4:
		return fmt.Sprintf("%s; %s are", unknown, strings.Join(longer, ", "))
	}
	likeness := func(known string) float64 { return levenshtein.Similarity(strings.ToLower(key), known, nil) }
	nearest := slices.MaxFunc(known, func(a, b string) int { return cmp.Compare(likeness(a), likeness(b)) })
	if likeness(nearest) >= 0.75 {
		return fmt.Sprintf("%s; %s is", unknown, nearest)
	}
	return unknown
}

// abbreviates tells whether the words of the key begin or end successive words of the known
// key: cert-file abbreviates certificate-file, and key-file privatekey-file.
func abbreviates(key, known string) bool {
	words, of := strings.Split(strings.ToLower(key), "-"), strings.Split(known, "-")
	for i := range len(of) - len(words) + 1 {
		matches := true
		for j, word := range words {
			matches = matches && len(word) > 1 && (strings.HasPrefix(of[i+j], word) || strings.HasSuffix(of[i+j], word))
		}
		if matches {
			return true
		}
	}
	return false
}
