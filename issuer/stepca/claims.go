package stepca

import (
	"time"

	"github.com/smallstep/certificates/authority/provisioner"

	"github.com/flexstack/step-csi/issuer"
)

// claims are the claims of the provisioner at the CA.
type claims struct {
	asked     time.Time
	renewal   string // as HolderRenewal returns it
	lifetimes issuer.Lifetimes
}

// LifetimeClaims implements issuer.LifetimeClaims. Connect and HolderRenewal read the
// claims.
func (s *Signer) LifetimeClaims() *issuer.ProvisionerClaims {
	known := s.claims.Load()
	if known == nil {
		return nil
	}
	return &issuer.ProvisionerClaims{Provisioner: s.config.Provisioner, Lifetimes: known.lifetimes}
}

// claimedLifetimes returns a provisioner's own claims about lifetimes.
func claimedLifetimes(own *provisioner.Claims) issuer.Lifetimes {
	if own == nil {
		return issuer.Lifetimes{}
	}
	duration := func(claim *provisioner.Duration) time.Duration { return max(claim.Value(), 0) }
	return issuer.Lifetimes{Default: duration(own.DefaultTLSDur), Min: duration(own.MinTLSDur), Max: duration(own.MaxTLSDur)}
}
