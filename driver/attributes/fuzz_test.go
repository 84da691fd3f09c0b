package attributes_test

import (
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"go.step.sm/crypto/x509util"
	"golang.org/x/net/idna"

	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
)

// FuzzParse takes attributes as lines of key=value.
func FuzzParse(f *testing.F) {
	add := func(values map[string]string) {
		var lines []string
		for key, value := range values {
			lines = append(lines, key+"="+value)
		}
		slices.Sort(lines)
		f.Add(strings.Join(lines, "\n"), pod.Namespace, pod.Name, "2000", true)
	}
	for _, c := range nameCases {
		add(map[string]string{c.key: c.value})
	}
	for _, c := range subjectCases {
		add(map[string]string{c.key: c.value})
	}
	add(fullRequest())
	for _, c := range otherCases {
		values := fullRequest()
		values[c.key] = c.value
		add(values)
	}
	add(trustOnly())
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))

	f.Fuzz(func(t *testing.T, lines, namespace, name, mountGroup string, short bool) {
		values := map[string]string{}
		for line := range strings.SplitSeq(lines, "\n") {
			key, value, _ := strings.Cut(line, "=")
			values[key] = value
		}
		p, c := pod, config()
		p.Namespace, p.Name = namespace, name
		c.AllowShortNames = short
		got, err := attributes.Parse(values, p, mountGroup, c)
		again, errAgain := attributes.Parse(maps.Clone(values), p, mountGroup, c)
		if !reflect.DeepEqual(got, again) || fmt.Sprint(err) != fmt.Sprint(errAgain) {
			t.Fatalf("parsed twice: %+v, %v\nand %+v, %v", got, err, again, errAgain)
		}
		checkNormalize(t, values, func(values map[string]string) (attributes.Attributes, error) {
			return attributes.Parse(values, p, mountGroup, c)
		})
		if err != nil {
			checkMessage(t, err.Error())
			return
		}
		if _, _, err := attributes.Identity(contextOf(p), p.Node); err != nil {
			return // Parse never gets such a pod.
		}
		checkRest(t, got, c)
		if !got.TrustOnly {
			checkTypedNames(t, got.Request)
			checkSubject(t, got.Request)
			checkSorting(t, got.Request)
			checkCSR(t, got.Request, issuer.PrivateKey{Signer: key})
		}
		checkIdempotence(t, got, p, c)
	})
}

func contextOf(p issuer.Pod) map[string]string {
	const prefix = "csi.storage.k8s.io/"
	return map[string]string{
		prefix + "ephemeral":           "true",
		prefix + "pod.namespace":       p.Namespace,
		prefix + "pod.name":            p.Name,
		prefix + "pod.uid":             p.UID,
		prefix + "serviceAccount.name": p.ServiceAccount,
	}
}

func checkMessage(t *testing.T, text string) {
	if text == "" || len(text) > 4096 || strings.Contains(text, "\n") || !utf8.ValidString(text) {
		t.Errorf("the error has %d bytes: %q", len(text), text)
	}
}

func checkRest(t *testing.T, a attributes.Attributes, c attributes.Config) {
	checkFiles(t, a)
	if a.TrustOnly {
		if !reflect.DeepEqual(a.Request, issuer.Request{}) || a.RevokeOnDelete || a.ReusePrivateKey || a.RenewBefore != 0 {
			t.Errorf("trust only, and %+v", a)
		}
		return
	}
	bounds, known := c.Issuers[a.Issuer]
	duration := a.Request.Duration
	if !known || duration < bounds.Min || duration > bounds.Max || a.RenewBefore < 0 || a.RenewBefore >= duration {
		t.Errorf("issuer %q, duration %s, renew before %s", a.Issuer, duration, a.RenewBefore)
	}
	family, _, _ := strings.Cut(string(a.Request.KeyType), "-")
	want := map[attributes.KeyEncoding]string{attributes.PKCS8: family, attributes.PKCS1: "rsa", attributes.SEC1: "ecdsa"}
	if !slices.Contains(issuer.KeyTypes(), a.Request.KeyType) || want[a.KeyEncoding] != family {
		t.Errorf("key type %q in %q", a.Request.KeyType, a.KeyEncoding)
	}
	if cn := a.Request.CommonName.String(); cn == "" || len(cn) > 64 || !utf8.ValidString(cn) || strings.ContainsAny(cn, "\x00\n\r") {
		t.Errorf("common name %q", cn)
	}
}

func checkFiles(t *testing.T, a attributes.Attributes) {
	files, fewest := a.Files.All(), 3
	if a.TrustOnly {
		fewest = 1
		if a.Files.Certificate != "" || a.Files.PrivateKey != "" || a.Files.CA == "" {
			t.Errorf("trust only, and the files %+v", a.Files)
		}
	}
	for _, name := range files {
		if !filepath.IsLocal(name) || filepath.Base(name) != name || name == "." || strings.HasPrefix(name, "..") || len(name) > 255 {
			t.Errorf("file %q", name)
		}
	}
	slices.Sort(files)
	if n := len(files); n < fewest || len(slices.Compact(files)) != n {
		t.Errorf("two files have the same name: %q", files)
	}
	for _, mode := range []fs.FileMode{a.Mode, a.PrivateKeyMode} {
		if mode&^fs.FileMode(0o644) != 0 || mode&0o400 == 0 || a.Owner < 0 || a.Group != nil && *a.Group < 0 {
			t.Errorf("mode %o, owner %d, group %v", mode, a.Owner, a.Group)
		}
	}
}

func checkTypedNames(t *testing.T, r issuer.Request) {
	strict := idna.New(idna.ValidateForRegistration(), idna.CheckHyphens(false))
	for _, name := range names.Texts(r.DNSNames) {
		host := strings.TrimPrefix(name, "*.")
		last := host[strings.LastIndexByte(host, '.')+1:]
		ascii, err := strict.ToASCII(host)
		if err != nil || ascii != host || len(name) > 253 || strings.Trim(last, "0123456789") == "" || name != host && !strings.Contains(host, ".") {
			t.Errorf("DNS name %q: %q, %v", name, ascii, err)
		}
	}
	for _, ip := range r.IPAddresses {
		if ip := ip.Addr(); ip.Is4In6() || ip.Zone() != "" || ip.IsUnspecified() || ip.IsMulticast() {
			t.Errorf("IP address %s", ip)
		}
	}
	for _, uri := range r.URIs {
		parsed, err := url.Parse(uri.String())
		if err != nil || parsed.String() != uri.String() || parsed.Scheme == "" || parsed.Host == "" || strings.Contains(uri.String(), "%") {
			t.Errorf("URI %q: %v", uri, err)
		}
	}
	for _, list := range [][]string{names.Texts(r.DNSNames), names.Texts(r.IPAddresses), names.Texts(r.URIs), names.Texts(r.EmailAddresses)} {
		if sorted := slices.Sorted(slices.Values(list)); len(slices.Compact(sorted)) != len(list) {
			t.Errorf("a name appears twice: %q", list)
		}
	}
}

// checkSorting sorts the names into types like step-ca does, and compares the
// result.
func checkSorting(t *testing.T, r issuer.Request) {
	all := r.AlternativeNames()
	dns, ips, emails, uris := x509util.SplitSANs(all)
	if len(all) == 0 || len(all) > 100 ||
		!slices.Equal(dns, names.Texts(r.DNSNames)) || !slices.Equal(names.Texts(ips), names.Texts(r.IPAddresses)) ||
		!slices.Equal(emails, names.Texts(r.EmailAddresses)) || !slices.Equal(names.Texts(uris), names.Texts(r.URIs)) {
		t.Errorf("step-ca sorts %q into %q, %q, %q, %q", all, dns, ips, emails, uris)
	}
}

// checkCSR checks that the registration authority reads the same names from the CSR.
func checkCSR(t *testing.T, r issuer.Request, key issuer.PrivateKey) {
	t.Helper()
	csr, err := issuer.NewCSR(r, key)
	if err != nil {
		t.Errorf("%+v: %v", r, err)
		return
	}
	_, read, err := issuer.ReadCSR(csr.Raw, r.Duration)
	read.Subject, read.TemplateData = r.Subject, r.TemplateData // not in the CSR
	if read.KeyType = r.KeyType; err != nil || !reflect.DeepEqual(read, r) {
		t.Errorf("the CSR of %+v is read as %+v, %v", r, read, err)
	}
}

// checkIdempotence writes the result as attributes and parses them again.
func checkIdempotence(t *testing.T, want attributes.Attributes, p issuer.Pod, c attributes.Config) {
	r := want.Request
	values := map[string]string{
		"issuer":            want.Issuer,
		"dns-names":         strings.Join(names.Texts(r.DNSNames), ","),
		"ip-sans":           strings.Join(names.Texts(r.IPAddresses), ","),
		"uri-sans":          strings.Join(names.Texts(r.URIs), ","),
		"email-sans":        strings.Join(names.Texts(r.EmailAddresses), ","),
		"spiffe":            "false",
		"common-name":       r.CommonName.String(),
		"template-data":     r.TemplateData.String(),
		"duration":          r.Duration.String(),
		"key-type":          string(r.KeyType),
		"key-encoding":      string(want.KeyEncoding),
		"reuse-private-key": fmt.Sprint(want.ReusePrivateKey),
		"chain":             string(want.Chain),
		"owner-uid":         fmt.Sprint(want.Owner),
		"file-mode":         fmt.Sprintf("%04o", want.Mode),
		"privatekey-mode":   fmt.Sprintf("%04o", want.PrivateKeyMode),
		"revoke-on-delete":  fmt.Sprint(want.RevokeOnDelete),

		"certificate-file":     want.Files.Certificate,
		"privatekey-file":      want.Files.PrivateKey,
		"ca-file":              want.Files.CA,
		"bundle-file":          want.Files.Bundle,
		"certificate-der-file": want.Files.CertificateDER,
		"privatekey-der-file":  want.Files.PrivateKeyDER,
		"ca-directory":         want.Files.CADirectory,
		"trust-only":           fmt.Sprint(want.TrustOnly),

		"pkcs12-file":            want.Files.PKCS12,
		"pkcs12-truststore-file": want.Files.PKCS12TrustStore,
		"pkcs12-profile":         string(want.PKCS12Profile),
		"jks-file":               want.Files.JKS,
		"jks-truststore-file":    want.Files.JKSTrustStore,
		"keystore-alias":         want.KeyStoreAlias,
		"keystore-password-file": want.Files.KeyStorePassword,
	}
	for key, list := range subjectAttributes(r.Subject) {
		values[key] = strings.Join(names.Texts(list), ",")
	}
	if want.TrustOnly {
		maps.DeleteFunc(values, func(key, _ string) bool { return trustOnly()[key] == "" })
	}
	if want.RenewBefore > 0 {
		values["renew-before"] = want.RenewBefore.String()
	}
	if want.Group != nil {
		values["fs-group"] = fmt.Sprint(*want.Group)
	}
	maps.DeleteFunc(values, func(_, value string) bool { return value == "" })
	if size, _ := json.Marshal(values); len(size) > 8<<10 {
		return // A normal form can exceed the limits, for example as xn--.
	}
	got, err := attributes.Parse(values, p, "", c)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v\nparses again to %+v, %v", want, got, err)
	}
}
