package policy

import (
	"reflect"
	"slices"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/cost"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/ext"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
)

// request is an issuer.Request as expressions see it.
type request struct {
	CommonName     string        `json:"commonName"`
	DNSNames       []string      `json:"dnsNames"`
	IPAddresses    []string      `json:"ipAddresses"`
	URIs           []string      `json:"uris"`
	EmailAddresses []string      `json:"emailAddresses"`
	Duration       time.Duration `json:"duration"`
	KeyType        string        `json:"keyType"`
	Issuer         string        `json:"issuer"`

	Organizations       []string       `json:"organizations"`
	OrganizationalUnits []string       `json:"organizationalUnits"`
	Countries           []string       `json:"countries"`
	Provinces           []string       `json:"provinces"`
	Localities          []string       `json:"localities"`
	StreetAddresses     []string       `json:"streetAddresses"`
	PostalCodes         []string       `json:"postalCodes"`
	TemplateData        map[string]any `json:"templateData"`
}

// settings are the parts of a Config that expressions see.
type settings struct {
	ClusterDomain   string `json:"clusterDomain"`
	TrustDomain     string `json:"trustDomain"`
	AllowShortNames bool   `json:"allowShortNames"`
}

// variables returns the values of the variables that newEnvironment declares.
func (p *Policy) variables(pod issuer.Pod, req issuer.Request) map[string]any {
	return map[string]any{"pod": pod, "config": p.settings, "request": request{
		CommonName:     req.CommonName.String(),
		DNSNames:       names.Texts(req.DNSNames),
		IPAddresses:    names.Texts(req.IPAddresses),
		URIs:           names.Texts(req.URIs),
		EmailAddresses: names.Texts(req.EmailAddresses),
		Duration:       req.Duration,
		KeyType:        string(req.KeyType),
		Issuer:         p.issuer,

		Organizations:       names.Texts(req.Subject.Organizations),
		OrganizationalUnits: names.Texts(req.Subject.OrganizationalUnits),
		Countries:           names.Texts(req.Subject.Countries),
		Provinces:           names.Texts(req.Subject.Provinces),
		Localities:          names.Texts(req.Subject.Localities),
		StreetAddresses:     names.Texts(req.Subject.StreetAddresses),
		PostalCodes:         names.Texts(req.Subject.PostalCodes),
		TemplateData:        req.TemplateData.Object(),
	}}
}

func newEnvironment() (*cel.Env, error) {
	pod, req, config := reflect.TypeFor[issuer.Pod](), reflect.TypeFor[request](), reflect.TypeFor[settings]()
	return cel.NewEnv(
		ext.NativeTypes(pod, req, config, ext.ParseStructTag("json")),
		cel.Variable("pod", cel.ObjectType(pod.String())),
		cel.Variable("request", cel.ObjectType(req.String())),
		cel.Variable("config", cel.ObjectType(config.String())),
		ext.Strings(),
		ext.Sets(),
		ext.Network(),
		cel.CrossTypeNumericComparisons(true),
		cel.DefaultUTCTimeZone(true),
		// Reject a regular expression or duration that cannot be parsed.
		cel.ExtendedValidations(),
	)
}

// sizes gives CEL's cost estimate the limits of package names and of template data.
type sizes struct{}

var _ cost.Estimator = sizes{}

func (sizes) EstimateSize(node cost.AstNode) *cost.SizeEstimate {
	switch path := node.Path(); {
	case len(path) == 0:
		return nil
	case slices.Contains(path, "templateData") && node.Type().Kind() == types.MapKind:
		const shortest = len(`"":1,`) // of a key with its value
		return &cost.SizeEstimate{Max: uint64(issuer.MaxTemplateData / shortest)}
	case slices.Contains(path, "templateData"):
		return &cost.SizeEstimate{Max: issuer.MaxTemplateData}
	case node.Type().Kind() == types.ListKind:
		return &cost.SizeEstimate{Max: names.MaxNames}
	case slices.Contains(path, "uris"):
		return &cost.SizeEstimate{Max: names.MaxURI}
	default:
		return &cost.SizeEstimate{Max: names.MaxLength}
	}
}

func (sizes) EstimateCallCost(string, string, *cost.AstNode, []cost.AstNode) *cost.CallEstimate {
	return nil
}
