package stepca

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"

	"github.com/smallstep/certificates/errs"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/chain"
	"github.com/flexstack/step-csi/issuer/chartvalue"
	"github.com/flexstack/step-csi/issuer/proxies"
	"github.com/flexstack/step-csi/issuer/trust"
)

var errNotStepCA = errors.New("the answer is not from step-ca")

// name names the CA in errors.
func (s *Signer) name() string { return "the CA " + s.url.String() }

// explain says which CA failed and why, and decides the outcome, unless that is known
// already. ctx is the caller's. A refusal counts as one only if step-ca itself answered it.
// The text has the call only if the CA answered it: other failures would be the same in
// every call.
func (s *Signer) explain(ctx context.Context, call string, err error) error {
	if issuer.OutcomeOf(err) != issuer.Failed {
		return err
	}
	if trust.IsOutsideValidity(err) {
		s.compareClocks(ctx)
	}
	outcome := issuer.Ended(ctx)
	reason := fmt.Errorf("%w%s", plain(err), s.hint(err))
	switch status := statusOf(err); {
	case status == http.StatusBadRequest, status == http.StatusUnauthorized, status == http.StatusForbidden:
		return fmt.Errorf("%s: %s: %w: %w", s.name(), call, issuer.Denied, reason)
	case outcome == issuer.Canceled:
		reason = fmt.Errorf("%s: %s: %w", s.name(), call, plain(err))
	case status != 0:
		reason = fmt.Errorf("%s: %s: %w", s.name(), call, reason)
	case isDial(err):
		reason = fmt.Errorf("%s cannot be reached: %w", s.name(), reason)
	case isTimeout(err):
		reason = fmt.Errorf("%s gives no answer in time: %w", s.name(), reason)
	case isUntrusted(err):
		reason = fmt.Errorf("%s is not trusted: %w", s.name(), reason)
	case isCut(err):
		reason = fmt.Errorf("%s cut the connection: %w", s.name(), reason)
	case !strings.HasPrefix(reason.Error(), s.name()):
		reason = fmt.Errorf("%s: %w", s.name(), reason)
	}
	return outcome.Because(reason)
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

// stepCAsPort is the port of step-ca in all its documentation. It has no default.
const stepCAsPort = "9000"

// hint suggests what to check.
func (s *Signer) hint(err error) string {
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var other x509.HostnameError
	var plainHTTP tls.RecordHeaderError
	clocks := s.clock.Describe("CA")
	switch {
	case trust.IsOutsideValidity(err) && s.clock.Differ(), statusOf(err) == http.StatusUnauthorized && s.clock.Differ():
		return fmt.Sprintf(" (%s: synchronize the clocks)", clocks)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Sprintf(" (%s, which the CA's server uses, is valid from %s to %s; %s; restart step-ca, which renews its own certificate, or replace its intermediate or root)",
			chain.Describe(invalid.Cert), invalid.Cert.NotBefore.UTC().Format(time.RFC3339), invalid.Cert.NotAfter.UTC().Format(time.RFC3339), clocks)
	case isDial(err):
		return s.addressHint(err)
	case isTimeout(err) && s.connection.Load() == nil && s.url.Port() == "":
		return s.addressHint(err)
	case isTimeout(err):
		return " (is the CA overloaded, or does something on the way drop packets?)"
	case errors.As(err, &unknown) && s.config.ServerRoots != nil:
		return " (serverTLS decides which roots verify the server: are they the right ones, and does the server send its intermediates?)"
	case errors.As(err, &unknown):
		return fmt.Sprintf("; check that this is the CA's URL, and that fingerprint or %s is that of this CA; if an ingress in front of the CA has a certificate of its own, set serverTLS",
			chartvalue.Beside("caBundleFile"))
	case errors.As(err, &other):
		return "; use a host of the certificate in the issuer's url, or add the host to dnsNames in the CA's ca.json"
	case errors.As(err, &plainHTTP), strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		return "; the server at this port does not speak TLS: correct the port of the issuer's url (step-ca listens on " + stepCAsPort + " unless configured otherwise)"
	case errors.Is(err, errNotStepCA):
		return "; check the issuer's url, and what is in front of the CA"
	case statusOf(err) == http.StatusUnauthorized:
		return fmt.Sprintf(" (the reason is in the CA's log; often the host of the URL is not among the CA's dnsNames; %s)", clocks)
	}
	return setting(err)
}

// addressHint suggests what to check if no connection opens.
func (s *Signer) addressHint(err error) string {
	var dns *net.DNSError
	port := s.url.Port()
	switch proxied, _ := proxies.Has(s.url); {
	case proxied: // the error names the proxy
		return ""
	case errors.As(err, &dns):
		return " (check the host of the issuer's url, and the cluster's DNS)"
	case port == "":
		return " (the issuer's url has no port, which means 443; step-ca listens on " + stepCAsPort + " unless configured otherwise)"
	case isTimeout(err):
		return " (no answer in time: does something on the way drop packets?)"
	case port != stepCAsPort:
		return " (check the port of the issuer's url: step-ca listens on " + stepCAsPort + " unless configured otherwise)"
	}
	return ""
}

// isDial tells whether no connection was opened, to the CA or to the proxy.
func isDial(err error) bool {
	var dial *net.OpError
	return errors.As(err, &dial) && (dial.Op == "dial" || dial.Op == "proxyconnect")
}

func isTimeout(err error) bool {
	var late net.Error
	return errors.As(err, &late) && late.Timeout()
}

// isUntrusted tells whether the certificate of the server was rejected.
func isUntrusted(err error) bool {
	var untrusted *tls.CertificateVerificationError
	return errors.As(err, &untrusted)
}

// isCut tells whether the connection ended without the end of an answer.
func isCut(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// isBroken tells whether the connection ended before the answer. It is false if there
// was no connection, no answer in time, or an answer.
func isBroken(err error) bool {
	var answer *errs.Error
	switch {
	case err == nil, errors.Is(err, errNotStepCA), errors.As(err, &answer), isUntrusted(err), isDial(err):
		return false
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return false
	}
	return true
}
