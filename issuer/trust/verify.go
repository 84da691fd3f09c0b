package trust

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"time"

	"github.com/flexstack/step-csi/issuer/clock"
)

// Verify is the Verify of a certificate on a machine whose clock may be behind that of the
// CA: certificates that become valid within clock.Tolerance count as valid. Servers renew
// their certificates long before the end, so that a clock that is ahead needs no tolerance.
func Verify(leaf *x509.Certificate, options x509.VerifyOptions) ([][]*x509.Certificate, error) {
	if options.CurrentTime.IsZero() {
		options.CurrentTime = time.Now()
	}
	latest := options.CurrentTime.Add(clock.Tolerance)
	for {
		chains, err := leaf.Verify(options)
		invalid, ok := errors.AsType[x509.CertificateInvalidError](err)
		// Each certificate moves the time at most once.
		if !ok || invalid.Reason != x509.Expired || !invalid.Cert.NotBefore.After(options.CurrentTime) || invalid.Cert.NotBefore.After(latest) {
			return chains, err
		}
		options.CurrentTime = invalid.Cert.NotBefore
	}
}

// VerifyServer verifies the certificate that a server presented in a handshake, like
// crypto/tls does, but with Verify. The error is a *tls.CertificateVerificationError.
func VerifyServer(presented []*x509.Certificate, host string, roots []*x509.Certificate) error {
	if len(presented) == 0 {
		return errors.New("the server sends no certificate")
	}
	_, err := Verify(presented[0], x509.VerifyOptions{
		DNSName:       host,
		Roots:         Pool(roots),
		Intermediates: Pool(presented[1:]),
	})
	if err != nil {
		return &tls.CertificateVerificationError{UnverifiedCertificates: presented, Err: err}
	}
	return nil
}

// IsOutsideValidity tells whether a certificate has expired or is not valid yet, by this
// machine's clock.
func IsOutsideValidity(err error) bool {
	invalid, ok := errors.AsType[x509.CertificateInvalidError](err)
	return ok && invalid.Reason == x509.Expired
}
