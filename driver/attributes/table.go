package attributes

// attribute is a key that users may write. set parses its value.
type attribute struct {
	key string
	set func(p *parser, value string) error
}

// table has all attributes, in the order in which errors are reported.
var table = []attribute{
	{"issuer", (*parser).setIssuer},
	{"service-names", (*parser).setServiceNames},
	{"dns-names", (*parser).setDNSNames},
	{"ip-sans", (*parser).setIPAddresses},
	{"uri-sans", (*parser).setURIs},
	{"email-sans", (*parser).setEmailAddresses},
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
