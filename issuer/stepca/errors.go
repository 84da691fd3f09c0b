package stepca

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/smallstep/certificates/errs"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/chain"
	"github.com/flexstack/step-csi/issuer/trust"
)

var errNotStepCA = errors.New("the answer is not from step-ca")

// explain says which call to which CA failed and why, and decides its outcome,
// unless that is known already. ctx is the caller's. A refusal counts as one only if
// step-ca itself answered it.
func (s *Signer) explain(ctx context.Context, call string, err error) error {
	if issuer.OutcomeOf(err) != issuer.Failed {
		return err
	}
	outcome := issuer.Ended(ctx)
	switch statusOf(err) {
	case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden:
		outcome = issuer.Denied
	}
	if trust.IsOutsideValidity(err) {
		s.compareClocks(ctx)
	}
	return fmt.Errorf("CA %s: %s: %w: %w%s", s.url, call, outcome, plain(err), s.hint(err))
}

// statusOf returns the HTTP status of step-ca's error, and 0 for every other error.
func statusOf(err error) int {
	var answer *errs.Error
	if errors.As(err, &answer) {
		return answer.Status
	}
	return 0
}

// maxMessage bounds the CA's message in errors, in bytes. Errors go to logs, events and
// /readyz.
const maxMessage = 1000

// plain removes the client's wrapping. If the CA answered a message for users, it
// returns that.
func plain(err error) error {
	var answer *errs.Error
	if errors.As(err, &answer) && (answer.Msg != "" || answer.Err != nil) {
		message := answer.Message()
		if len(message) > maxMessage {
			message = strings.ToValidUTF8(message[:maxMessage], "") + "…"
		}
		return errors.New(message)
	}
	// The client repeats the URL.
	if inner := errors.Unwrap(err); inner != nil && strings.HasPrefix(err.Error(), "client ") {
		return inner
	}
	return err
}

// hint suggests what to check.
func (s *Signer) hint(err error) string {
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var late net.Error
	clocks := s.clock.Describe("CA")
	switch {
	case trust.IsOutsideValidity(err) && s.clock.Differ(), statusOf(err) == http.StatusUnauthorized && s.clock.Differ():
		return fmt.Sprintf(" (%s: synchronize the clocks)", clocks)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Sprintf(" (%s, which the CA's server uses, is valid from %s to %s; %s; restart step-ca, which renews its own certificate, or replace its intermediate or root)",
			chain.Describe(invalid.Cert), invalid.Cert.NotBefore.UTC().Format(time.RFC3339), invalid.Cert.NotAfter.UTC().Format(time.RFC3339), clocks)
	case errors.As(err, &late) && late.Timeout():
		return " (no answer in time: is the CA overloaded, or does something on the way drop packets?)"
	case errors.As(err, &unknown) && s.config.ServerRoots != nil:
		return " (serverTLS decides which roots verify the server: are they the right ones, and does the server send its intermediates?)"
	case errors.As(err, &unknown):
		return " (is the fingerprint or caBundleFile that of this CA?); if an ingress in front of the CA has a certificate of its own, set serverTLS"
	case statusOf(err) == http.StatusUnauthorized:
		return fmt.Sprintf(" (the reason is in the CA's log; often the host of the URL is not among the CA's dnsNames; %s)", clocks)
	}
	return setting(err)
}

// isBroken tells whether the connection ended before the answer. It is false if there
// was no connection, no answer in time, or an answer.
func isBroken(err error) bool {
	var answer *errs.Error
	var dial *net.OpError
	var untrusted *tls.CertificateVerificationError
	switch {
	case err == nil, errors.Is(err, errNotStepCA), errors.As(err, &answer), errors.As(err, &untrusted):
		return false
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return false
	case errors.As(err, &dial) && (dial.Op == "dial" || dial.Op == "proxyconnect"):
		return false
	}
	return true
}
