package issuer

import (
	"cmp"
	"context"
	"crypto/x509"
	"fmt"
	"strings"
	"time"

	"k8s.io/klog/v2"
)

// Lifetimes are how long certificates live: by default, at least and at most. A zero
// value is not configured, or not known.
type Lifetimes struct{ Default, Min, Max time.Duration }

// LifetimeTexts are Lifetimes as configuration files have them. An empty text is not
// configured.
type LifetimeTexts struct {
	Default string `json:"default"`
	Max     string `json:"max"`
	Min     string `json:"min"`
}

// Parse returns what is configured. The errors name the key below the issuer.
func (t LifetimeTexts) Parse() (l Lifetimes, err error) {
	if l.Max, err = ParseDuration("duration.max", t.Max, 0); err != nil {
		return l, err
	}
	if l.Min, err = ParseDuration("duration.min", t.Min, 0); err != nil {
		return l, err
	}
	if l.Default, err = ParseDuration("duration.default", t.Default, 0); err != nil {
		return l, err
	}
	switch {
	case l.Max > 0 && l.Min > l.Max:
		return l, fmt.Errorf("duration.min: %s is longer than duration.max, %s", l.Min, l.Max)
	case l.Default > 0 && l.Default < l.Min:
		return l, fmt.Errorf("duration.default: %s is shorter than duration.min, %s", l.Default, l.Min)
	case l.Max > 0 && l.Default > l.Max:
		return l, fmt.Errorf("duration.default: %s is longer than duration.max, %s", l.Default, l.Max)
	}
	return l, nil
}

// ParseDuration parses a duration of a configuration file, of at least a second. The key is
// for the error. An empty text means otherwise.
func ParseDuration(key, text string, otherwise time.Duration) (time.Duration, error) {
	if text == "" {
		return otherwise, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < time.Second {
		return 0, fmt.Errorf("%s: %q is not a duration of at least a second, such as 24h or 90m", key, text)
	}
	return d, nil
}

// ProvisionerClaims are the claims of a provisioner about the lifetimes of certificates.
// step-ca does not show the claims that a provisioner inherits from the whole CA: they
// are zero.
type ProvisionerClaims struct {
	Provisioner string
	Lifetimes
}

// LifetimeClaims is a Signer that knows the claims of its provisioner. If a Signer is
// none, a request without a duration stays without: the called server decides.
type LifetimeClaims interface {
	// LifetimeClaims returns what the CA answered last, without a call. It is nil before
	// the first Connect.
	LifetimeClaims() *ProvisionerClaims
}

// stepCALifetime is step-ca's own default.
const stepCALifetime = 24 * time.Hour

// Lifetimes are the configured ones.
func (i *Issuer) Lifetimes() Lifetimes { return i.lifetimes }

// DefaultLifetime returns how long a certificate lives if the pod requests no duration:
// as configured, or as the provisioner claims, within the limits of both. It is zero if
// that is not known, or if the registration authority decides.
func (i *Issuer) DefaultLifetime() time.Duration {
	if i.lifetimes.Default != 0 {
		return i.lifetimes.Default
	}
	if s, ok := i.signer.(LifetimeClaims); ok {
		if claims := s.LifetimeClaims(); claims != nil {
			return i.lifetimes.within(claims.within(cmp.Or(claims.Default, stepCALifetime)))
		}
	}
	return 0
}

// WithoutClaims returns the lifetime that the policy sees if the pod requests none, while
// the claims of the CA's provisioner are not known.
func (l Lifetimes) WithoutClaims() time.Duration {
	return cmp.Or(l.Default, l.within(stepCALifetime))
}

// within returns the lifetime that is nearest to d.
func (l Lifetimes) within(d time.Duration) time.Duration {
	if l.Max > 0 {
		d = min(d, l.Max)
	}
	return max(d, l.Min)
}

// withDefaultLifetime returns the request with the default lifetime if it has none.
func (i *Issuer) withDefaultLifetime(req SigningRequest) SigningRequest {
	if req.Request.Duration != 0 {
		return req
	}
	req.DefaultLifetime = i.lifetimes.Default == 0
	req.Request.Duration = i.DefaultLifetime()
	if _, ok := i.signer.(LifetimeClaims); ok && req.Request.Duration == 0 {
		req.Request.Duration = i.lifetimes.WithoutClaims() // until withClaimedLifetime
	}
	return req
}

// withClaimedLifetime replaces a default lifetime if the provisioner's claims have changed
// since, or were not known. It then applies the policy again. It connects to the CA if it
// has to.
func (i *Issuer) withClaimedLifetime(ctx context.Context, p Prepared) (Prepared, error) {
	claims, ok := i.signer.(LifetimeClaims)
	if !ok || !p.request.DefaultLifetime {
		return p, nil
	}
	if claims.LifetimeClaims() == nil {
		if err := i.signer.Connect(ctx); err != nil {
			return p, err
		}
	}
	lifetime := i.DefaultLifetime()
	if lifetime == 0 || lifetime == p.request.Request.Duration {
		return p, nil
	}
	p.request.Request.Duration = lifetime
	return p, i.allow(ctx, p.request.Applicant.Pod, p.request.Request)
}

// refusedBy says which configured lifetimes the CA refuses, and what to change. The text
// is empty if there are none.
func (l Lifetimes) refusedBy(claims *ProvisionerClaims) string {
	if claims == nil {
		return ""
	}
	var all []string
	add := func(key string, d, limit time.Duration, comparison, what, refused, claim, flag string) {
		all = append(all, fmt.Sprintf("duration.%s is %s, %s than %s, the %s of provisioner %q at the CA (claim %s): the CA refuses %s; "+
			"set duration.%[1]s to %[4]s, or run at the CA: step ca provisioner update %[6]q %[9]s=%[2]s, and let step-ca load its configuration again",
			key, d, comparison, limit, what, claims.Provisioner, claim, refused, flag))
	}
	const withoutDuration = "pods without the attribute duration"
	if claims.Max > 0 {
		longest := func(key string, d time.Duration, refused string) {
			if d > claims.Max {
				add(key, d, claims.Max, "longer", "maximum", refused, "maxTLSCertDuration", "--x509-max-dur")
			}
		}
		longest("default", l.Default, withoutDuration)
		longest("max", l.Max, "pods that ask for more than its maximum")
		longest("min", l.Min, "all pods")
	}
	if claims.Min > 0 {
		shortest := func(key string, d time.Duration, refused string) {
			if d > 0 && d < claims.Min {
				add(key, d, claims.Min, "shorter", "minimum", refused, "minTLSCertDuration", "--x509-min-dur")
			}
		}
		shortest("default", l.Default, withoutDuration)
		shortest("min", l.Min, "pods that ask for less than its minimum")
		shortest("max", l.Max, "all pods")
	}
	return strings.Join(all, "; and ")
}

// logShortened logs the first certificate that does not live as long as requested. A CA
// may limit certificates by what neither its answers nor the configuration show.
func (i *Issuer) logShortened(ctx context.Context, leaf *x509.Certificate, req Request) {
	lifetime := leaf.NotAfter.Sub(leaf.NotBefore) // longer than requested, because CAs backdate
	if req.Duration == 0 || lifetime > req.Duration-2*time.Second {
		return
	}
	i.shortened.Do(func() {
		klog.FromContext(ctx).Info("The CA shortens the lifetime of certificates; to choose it, set the issuer's duration.default",
			"requested", req.Duration.String(), "lifetime", lifetime.String())
	})
}
