package stepca

import (
	"context"
	"crypto/tls"
	"net/http"
	"time"

	"go.step.sm/crypto/jose"

	"github.com/flexstack/step-csi/issuer/clock"
	"github.com/flexstack/step-csi/issuer/panics"
)

// tokenValidity returns the validity of a one-time token, for a CA whose clock is ahead or
// behind by clock.Tolerance. The token has no time of issue ("iat"): step-ca refuses a token
// that was issued before step-ca started, which a clock that is behind would make of every
// token, for as long as it is behind. The check stands in for a database of used tokens; a
// token that is bound to one CSR is worth nothing to others. See authorizeToken in
// https://github.com/smallstep/certificates/blob/v0.30.2/authority/authorize.go.
func tokenValidity(now time.Time) (notBefore, expiry *jose.NumericDate) {
	return jose.NewNumericDate(now.Add(-clock.Tolerance)), jose.NewNumericDate(now.Add(clock.Tolerance))
}

// compareTimeout bounds the request that compares the clocks.
const compareTimeout = 5 * time.Second

// compareClocks compares the clocks when the CA's certificate cannot be verified because of
// its validity, so that there is no other answer. The connection is not verified: the
// request has no secret, and the result only goes into an error message.
func (s *Signer) compareClocks(ctx context.Context) {
	const what = "compare the clocks"
	compared := s.calls.DoChan(what, func() (_ any, err error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), compareTimeout)
		defer cancel()
		defer panics.Recover(ctx, what, &err) // singleflight would end the process
		transport := s.newTransport(&tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true})
		defer transport.CloseIdleConnections()
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url.JoinPath("health").String(), nil)
		if err != nil {
			return nil, err
		}
		response, err := limitedTransport{transport, &s.clock}.RoundTrip(request)
		if err == nil {
			response.Body.Close()
		}
		return nil, err
	})
	select {
	case <-compared:
	case <-ctx.Done():
	}
}
