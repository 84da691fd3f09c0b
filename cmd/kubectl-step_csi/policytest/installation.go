package policytest

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	utiljson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"github.com/flexstack/step-csi/deploy/charts"
	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
	"github.com/flexstack/step-csi/issuer/policy"
)

// installation is what decides about the names of pods.
type installation struct {
	driverName string
	attributes attributes.Config
	issuers    map[string]testedIssuer
}

// testedIssuer is an issuer with its policy.
type testedIssuer struct {
	policy *policy.Policy
	// origin is the key that has the validations.
	origin string
	// at begins the reason of a denial in the pod's event: the registration authority's URL.
	at string
}

// settings are the keys of an installation that matter here. The values of the chart and
// configuration files share most of them.
type settings struct {
	DriverName    string `json:"driverName"`
	ClusterDomain string `json:"clusterDomain"`
	TrustDomain   string `json:"trustDomain"`
	Issuers       map[string]struct {
		URL         string   `json:"url"`
		URLs        []string `json:"urls"`
		Provisioner struct {
			Type string `json:"type"`
		} `json:"provisioner"`
		Duration issuer.LifetimeTexts `json:"duration"`
		Policy   policy.Rules         `json:"policy"`
	} `json:"issuers"`
	Policy struct {
		AllowShortNames bool `json:"allowShortNames"`
		policy.Rules
	} `json:"policy"`

	// Only the configuration of a registration authority has this.
	Authority *struct {
		Names      []string `json:"names"`
		Kubernetes struct {
			URL string `json:"url"`
		} `json:"kubernetes"`
	} `json:"authority"`

	// Only the chart has these.
	Mode             string `json:"mode"`
	NameOverride     string `json:"nameOverride"`
	FullnameOverride string `json:"fullnameOverride"`
	RA               struct {
		Port     int `json:"port"`
		Existing struct {
			Release  string `json:"release"`
			Fullname string `json:"fullname"`
		} `json:"existing"`
	} `json:"ra"`
}

// Release is where the chart is installed: the names of its Services are reserved.
type Release struct{ Name, Namespace string }

// readInstallation reads files of chart values, or one configuration file. Without a file, it
// returns the chart's defaults.
func readInstallation(paths []string, r Release, stdin io.Reader) (installation, error) {
	values := map[string]any{}
	for _, path := range paths {
		next, err := readMap(path, stdin)
		if err != nil {
			return installation{}, fmt.Errorf("%s: %w", path, err)
		}
		if isConfiguration(next) {
			if len(paths) > 1 {
				return installation{}, fmt.Errorf("%s: is a configuration file, not values of the chart: give it alone", path)
			}
			return configurationFile(next, path)
		}
		values = merge(values, next)
	}
	where := cmp.Or(strings.Join(paths, ", "), "the chart's defaults")
	made, err := chartValues(values, r)
	if err != nil {
		return installation{}, fmt.Errorf("%s: %w", where, err)
	}
	return made, nil
}

// readFile reads the file, or the standard input for "-".
func readFile(path string, stdin io.Reader) ([]byte, error) {
	if path == "-" {
		return io.ReadAll(stdin)
	}
	return os.ReadFile(path)
}

func readMap(path string, stdin io.Reader) (map[string]any, error) {
	data, err := readFile(path, stdin)
	if err != nil {
		return nil, err
	}
	all := map[string]any{}
	if err := yaml.UnmarshalStrict(data, &all); err != nil {
		return nil, err
	}
	return all, nil
}

// isConfiguration tells whether the file is one of "step-csi node" or "step-csi ra". Each of
// their issuers names a file with its secret, which the chart's values never do.
func isConfiguration(file map[string]any) bool {
	_, authority := file["authority"]
	issuers, _ := file["issuers"].(map[string]any)
	for _, one := range issuers {
		one, _ := one.(map[string]any)
		provisioner, _ := one["provisioner"].(map[string]any)
		for key := range provisioner {
			authority = authority || strings.HasSuffix(key, "File")
		}
	}
	return authority
}

// merge merges values as Helm does: sections are merged, and everything else is replaced.
func merge(values, next map[string]any) map[string]any {
	for key, value := range next {
		section, isSection := value.(map[string]any)
		if before, wasSection := values[key].(map[string]any); isSection && wasSection {
			value = merge(before, section)
		}
		values[key] = value
	}
	return values
}

func configurationFile(file map[string]any, path string) (installation, error) {
	s, err := parseSettings(file)
	if err != nil {
		return installation{}, fmt.Errorf("%s: %w", path, err)
	}
	for _, key := range slices.Sorted(maps.Keys(file)) {
		switch key {
		case "driverName", "clusterDomain", "trustDomain", "issuers", "policy", "metrics", "authority", "renewal", "limits":
		default:
			return installation{}, fmt.Errorf("%s: unknown field %q", path, key)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.Issuers)) {
		if s.Issuers[name].Provisioner.Type == "ra" {
			return installation{}, fmt.Errorf("%s: issuers.%s: the registration authority has the policy: give its configuration file instead", path, name)
		}
	}
	var urls, own []string
	if s.Authority != nil {
		urls, own = []string{s.Authority.Kubernetes.URL}, s.Authority.Names
	}
	made, err := s.installation("", urls, own)
	if err != nil {
		return installation{}, fmt.Errorf("%s: %w", path, err)
	}
	return made, nil
}

// chartValues returns what the chart makes of the values.
func chartValues(values map[string]any, r Release) (installation, error) {
	if err := setDefaults(values); err != nil {
		return installation{}, err
	}
	s, err := parseSettings(values)
	if err != nil {
		return installation{}, err
	}
	for name, i := range s.Issuers {
		if i.URL == "" && len(i.URLs) == 0 {
			i.URL = "https://step-certificates." + r.Namespace + ".svc." + s.ClusterDomain
			s.Issuers[name] = i
		}
	}
	var own []string
	var at string
	switch s.Mode {
	case "ra":
		name := s.authorityName(r.Name) + "." + r.Namespace
		own = []string{name + ".svc." + s.ClusterDomain, name + ".svc", name}
		at = fmt.Sprintf("registration authority https://%s:%d: ", own[0], s.RA.Port)
	case "node":
	default:
		return installation{}, fmt.Errorf("mode: %q is neither ra nor node", s.Mode)
	}
	return s.installation(at, nil, own)
}

// setDefaults sets what is missing or null to the chart's default, as the chart's template
// step-csi.setDefaults does. It rejects values that the chart does not know.
func setDefaults(values map[string]any) error {
	var defaults map[string]any
	if err := yaml.UnmarshalStrict(charts.Defaults, &defaults); err != nil {
		return err
	}
	if err := checkKeys(values, "", defaults); err != nil {
		return err
	}
	issuers, _ := values["issuers"].(map[string]any)
	defaultIssuer, given := issuers["default"]
	removed := given && defaultIssuer == nil
	maps.DeleteFunc(issuers, func(_ string, value any) bool { return value == nil })
	for path, value := range defaults {
		if removed && strings.HasPrefix(path, "issuers.default.") {
			continue
		}
		section, keys := values, strings.Split(path, ".")
		last := len(keys) - 1
		for i, key := range keys[:last] {
			if section[key] == nil {
				section[key] = map[string]any{}
			}
			below, ok := section[key].(map[string]any)
			if !ok {
				return fmt.Errorf("%s: must have keys below it", strings.Join(keys[:i+1], "."))
			}
			section = below
		}
		if section[keys[last]] == nil {
			section[keys[last]] = value
		}
	}
	return nil
}

// checkKeys rejects a key that is not in the defaults, such as a misspelt one.
func checkKeys(values map[string]any, parent string, defaults map[string]any) error {
	for _, key := range slices.Sorted(maps.Keys(values)) {
		path := parent + key
		known := path
		if parent == "issuers." {
			known = "issuers.default"
		}
		if _, value := defaults[known]; value || path == "global" {
			continue
		}
		below := func(path string) bool { return strings.HasPrefix(path, known+".") }
		if !slices.ContainsFunc(slices.Collect(maps.Keys(defaults)), below) {
			if _, isSection := values[key].(map[string]any); isSection && parent == "" {
				return fmt.Errorf("%s: the chart has no such value; of a parent chart's values, give only those of this chart", path)
			}
			return fmt.Errorf("%s: the chart has no such value", path)
		}
		section, isSection := values[key].(map[string]any)
		switch {
		case isSection:
			if err := checkKeys(section, known+".", defaults); err != nil {
				return err
			}
		case values[key] != nil:
			return fmt.Errorf("%s: must have keys below it", path)
		}
	}
	return nil
}

// parseSettings leaves out keys that do not matter here. It rejects unknown keys of policies:
// without a misspelt validation, a policy would allow more.
func parseSettings(file map[string]any) (s settings, err error) {
	data, err := yaml.Marshal(file)
	if err == nil {
		data, err = yaml.YAMLToJSON(data)
	}
	if err != nil {
		return s, err
	}
	unknown, err := utiljson.UnmarshalStrict(data, &s)
	for _, field := range unknown {
		if strings.Contains(field.Error(), "policy.") {
			err = errors.Join(err, field)
		}
	}
	return s, err
}

// authorityName is the name of the registration authority's objects: the chart's template
// step-csi.raName.
func (s settings) authorityName(releaseName string) string {
	clip := func(name string, length int) string {
		return strings.TrimSuffix(name[:min(len(name), length)], "-")
	}
	fullname := s.FullnameOverride
	if existing := s.RA.Existing; existing.Release != "" {
		releaseName, fullname = existing.Release, existing.Fullname
	}
	if name := clip(cmp.Or(s.NameOverride, "step-csi"), 63); fullname == "" && strings.Contains(releaseName, name) {
		fullname = releaseName
	} else if fullname == "" {
		fullname = releaseName + "-" + name
	}
	return clip(clip(fullname, 63), 60) + "-ra"
}

// installation compiles the policies. at is the URL of the registration authority, own are its
// names, and urls those of other servers whose names no pod gets.
func (s settings) installation(at string, urls, own []string) (installation, error) {
	made := installation{driverName: cmp.Or(s.DriverName, "csi.step-ca.io"), issuers: map[string]testedIssuer{}}
	made.attributes = attributes.Config{AllowShortNames: s.Policy.AllowShortNames, Issuers: map[string]issuer.Lifetimes{}}
	if len(s.Issuers) == 0 {
		return made, errors.New("issuers: there is none; add at least one, such as default")
	}
	var err error
	if made.attributes.ClusterDomain, err = names.ParseClusterDomain(cmp.Or(s.ClusterDomain, "cluster.local")); err != nil {
		return made, fmt.Errorf("clusterDomain: %w", err)
	}
	if made.attributes.TrustDomain, err = names.ParseTrustDomain(cmp.Or(s.TrustDomain, made.attributes.ClusterDomain.String())); err != nil {
		return made, fmt.Errorf("trustDomain: %w", err)
	}
	hosts, err := names.ParseAll(names.ParseHost, own...)
	if err != nil {
		return made, fmt.Errorf("names of the registration authority: %w", err)
	}
	for _, i := range s.Issuers {
		urls = append(append(urls, i.URL), i.URLs...)
	}
	reserved := policy.NewReserved(made.attributes.ClusterDomain, append(hosts, policy.HostsOf(urls...)...)...)
	var wrong []error
	compile := func(key, name string, rules policy.Rules) *policy.Policy {
		p, err := policy.New(policy.Config{
			ClusterDomain: made.attributes.ClusterDomain, TrustDomain: made.attributes.TrustDomain, AllowShortNames: s.Policy.AllowShortNames,
			AllowSubjectFields: rules.AllowSubjectFields, AllowTemplateData: rules.AllowTemplateData, Validations: rules.Validations,
			Issuer: name, Reserved: reserved,
		})
		if err != nil {
			wrong = append(wrong, fmt.Errorf("%s: %w", key, err))
		}
		return p
	}
	compile("policy", "", s.Policy.Rules)
	common := len(wrong) == 0
	for _, name := range slices.Sorted(maps.Keys(s.Issuers)) {
		i := s.Issuers[name]
		if made.attributes.Issuers[name], err = i.Duration.Parse(); err != nil {
			wrong = append(wrong, fmt.Errorf("issuers.%s.%w", name, err))
		}
		if i.Policy.IsEmpty() && !common {
			continue // reported once
		}
		tested := testedIssuer{at: at, origin: "policy.validations"}
		if len(i.Policy.Validations) > 0 {
			tested.origin = "issuers." + name + ".policy.validations"
		}
		tested.policy = compile("issuers."+name+".policy", name, s.Policy.Of(i.Policy))
		made.issuers[name] = tested
	}
	return made, errors.Join(wrong...)
}
