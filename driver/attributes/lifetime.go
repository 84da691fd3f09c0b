package attributes

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/flexstack/step-csi/issuer/names"
)

func (p *parser) setIssuer(value string) error {
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
		return 0, fmt.Errorf("%s is not a duration above zero, such as 24h or 90m", names.Quote(value))
	}
	return d, nil
}

// finishLifetime checks the durations against the bounds of the issuer.
func (p *parser) finishLifetime() error {
	bounds, known := p.config.Issuers[p.result.Issuer]
	if !known {
		return fmt.Errorf("issuer: %s is not an issuer in the plugin's configuration; it has %s",
			names.Quote(p.result.Issuer), strings.Join(slices.Sorted(maps.Keys(p.config.Issuers)), ", "))
	}
	duration := &p.result.Request.Duration
	if *duration == 0 {
		*duration = bounds.Default
	}
	if *duration < bounds.Min || *duration > bounds.Max {
		return fmt.Errorf("duration: %q is not between %s and %s, which the plugin's configuration allows for the issuer %s",
			*duration, bounds.Min, bounds.Max, names.Quote(p.result.Issuer))
	}
	if p.result.RenewBefore >= *duration {
		return fmt.Errorf("renew-before: %q is not shorter than the duration of %s", p.result.RenewBefore, *duration)
	}
	return nil
}
