package attributes

import "github.com/flexstack/step-csi/issuer/names"

// attribute is a key that users may write. set parses its value.
type attribute struct {
	key string
	set func(p *parser, value string) error
}

// table has all attributes, in the order in which errors are reported.
var table = []attribute{
	{"issuer", (*parser).setIssuer},
	{"service-names", setList(func(p *parser) *[]names.DNSName { return &p.services }, parseServiceName)},
	{"dns-names", setList(func(p *parser) *[]names.DNSName { return &p.dns }, parseDNSName)},
	{"ip-sans", setList(func(p *parser) *[]names.IP { return &p.result.Request.IPAddresses }, names.ParseIP)},
	{"uri-sans", setList(func(p *parser) *[]names.URI { return &p.result.Request.URIs }, names.ParseURI)},
	{"email-sans", setList(func(p *parser) *[]names.EmailAddress { return &p.result.Request.EmailAddresses }, names.ParseEmailAddress)},
	{"spiffe", setBool(func(p *parser) *bool { return &p.spiffe })},
	{"common-name", (*parser).setCommonName},
	{"duration", (*parser).setDuration},
	{"renew-before", (*parser).setRenewBefore},
	{"key-type", (*parser).setKeyType},
	{"key-encoding", (*parser).setKeyEncoding},
	{"reuse-private-key", setBool(func(p *parser) *bool { return &p.result.ReusePrivateKey })},
	{"certificate-file", setFile(func(p *parser) *string { return &p.result.CertificateFile })},
	{"privatekey-file", setFile(func(p *parser) *string { return &p.result.PrivateKeyFile })},
	{"ca-file", setFile(func(p *parser) *string { return &p.result.CAFile })},
	{"fs-group", (*parser).setGroup},
	{"file-mode", (*parser).setMode},
	{"revoke-on-delete", setBool(func(p *parser) *bool { return &p.result.RevokeOnDelete })},
}

// Keys returns the keys of all attributes.
func Keys() []string {
	keys := make([]string, len(table))
	for i, a := range table {
		keys[i] = a.key
	}
	return keys
}
