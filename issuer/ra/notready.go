package ra

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"math/big"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"

	"github.com/flexstack/step-csi/issuer"
)

// A registration authority that has no valid certificate of the CA cannot prove who it
// is, but it can say why: it serves TLS with a self-signed certificate that contains the
// reason. A node plugin reads the reason in the handshake, which it then ends. It sends
// no token, and the registration authority accepts no call on such a connection. Anyone
// on the way can forge the reason, so the node plugin only shows it, as unverified.

const (
	// notReadyName is the subject of such a certificate.
	notReadyName = "step-csi registration authority, not ready"
	// maxReason bounds the reason, in bytes.
	maxReason = 1 << 10
	// reasonValidFor is how long the last reason explains failed calls. gRPC reconnects to
	// each replica more often.
	reasonValidFor = 30 * time.Second
)

// commentID is the extension for comments. Tools such as openssl show it as "Netscape
// Comment". An identifier below 2.25, for UUIDs, is not possible: crypto/x509 parses no
// component of more than 31 bits.
func commentID() asn1.ObjectIdentifier { return asn1.ObjectIdentifier{2, 16, 840, 1, 113730, 1, 13} }

// NotReadyCertificate returns a self-signed certificate that contains the reason why the
// registration authority is not ready. It has no names and is never valid.
func NotReadyCertificate(reason string, key crypto.Signer) (*tls.Certificate, error) {
	comment, err := asn1.MarshalWithParams(printable(reason), "ia5")
	if err != nil {
		return nil, err
	}
	never := time.Unix(0, 0)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: notReadyName}, NotBefore: never, NotAfter: never,
		ExtraExtensions: []pkix.Extension{{Id: commentID(), Value: comment}},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("create the certificate that says why the registration authority is not ready: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, err
}

// reasonOf returns the reason in a NotReadyCertificate, and false for any other
// certificate. The reason is the peer's, and the peer is not verified.
func reasonOf(presented *x509.Certificate) (reason string, found bool) {
	if presented.Subject.CommonName != notReadyName || presented.Issuer.CommonName != notReadyName {
		return "", false
	}
	for _, e := range presented.Extensions {
		if !e.Id.Equal(commentID()) {
			continue
		}
		if rest, err := asn1.UnmarshalWithParams(e.Value, &reason, "ia5"); err == nil && len(rest) == 0 {
			return printable(reason), true
		}
	}
	return "", false
}

// printable replaces all characters that are not printable ASCII, and bounds the text.
func printable(text string) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return ' '
		}
		return r
	}, strings.ReplaceAll(text[:min(len(text), 2*maxReason)], "…", "..."))
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > maxReason {
		text = text[:maxReason-3] + "..."
	}
	return text
}

// notReady is the error of a replica that says that it is not ready.
type notReady struct {
	url    string
	reason string    // unverified
	at     time.Time // of the handshake
}

// Error implements error. The peer's text is at the end, so that no character in it can
// end it.
func (n *notReady) Error() string {
	return fmt.Sprintf("registration authority %s: not ready; it says (unverified): %s", n.url, n.reason)
}

// Unwrap returns the outcome: a retry may succeed.
func (n *notReady) Unwrap() []error { return []error{issuer.Unavailable, issuer.ErrNotYet} }

// refusal returns an error if the peer's certificate says that it is not ready, and
// keeps it for explanations.
func (s *Signer) refusal(presented *x509.Certificate) error {
	reason, found := reasonOf(presented)
	if !found {
		return nil
	}
	n := &notReady{s.url.String(), reason, time.Now()}
	s.unready.Store(n)
	return n
}

// patience is how long a call waits for a connection while none can be established. It is
// longer than the backoff of connections, so that a call after an outage succeeds.
const patience = maxReconnect + 500*time.Millisecond

// awaitReplica waits until a replica is connected, at most for patience. A call after it
// fails at once if the connections to all replicas have failed, and says why. While the
// first connection to a replica is in progress, the call waits for it.
func (s *Signer) awaitReplica(ctx context.Context) {
	limited, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	s.connection.Connect()
	for state := s.connection.GetState(); state != connectivity.Ready; state = s.connection.GetState() {
		if !s.connection.WaitForStateChange(limited, state) {
			return
		}
	}
}

// unreached is the error of a call that no registration authority has answered.
type unreached struct{ error }

// Unwrap returns the error, and that this is normal while the registration authority
// starts.
func (u unreached) Unwrap() []error { return []error{u.error, issuer.ErrNotYet} }

// explainUnanswered explains a failed call that no replica has answered: by the reason
// that a replica gives, if there is no connection to another one, or else by what gRPC
// says. It returns nil if a replica has answered.
func (s *Signer) explainUnanswered(ctx context.Context, call string, err error) error {
	reply, ok := status.FromError(err)
	if !ok || len(reply.Details()) > 0 || ctx.Err() != nil || reply.Code() != codes.Unavailable && reply.Code() != codes.DeadlineExceeded {
		return nil
	}
	if n := s.unready.Load(); n != nil && time.Since(n.at) < reasonValidFor && s.connection.GetState() == connectivity.TransientFailure {
		return n
	}
	explained := s.explain(ctx, call, err)
	if hint := s.hint(reply); hint != "" {
		explained = fmt.Errorf("%w (%s)", explained, hint)
	}
	return unreached{explained}
}

// hint says what to check if there is no connection.
func (s *Signer) hint(reply *status.Status) string {
	text := reply.Message()
	switch {
	case reply.Code() == codes.DeadlineExceeded: // explain has a hint
		return ""
	case strings.Contains(text, "no such host"):
		if namespace := s.namespace(); namespace != "" {
			return "no pod of the registration authority exists, or the URL is wrong: kubectl -n " + namespace + " get pods"
		}
		return "is the host of the URL the registration authority's?"
	case strings.Contains(text, "connection refused"):
		if namespace := s.namespace(); namespace != "" {
			return "do the pods of the registration authority run? kubectl -n " + namespace + " get pods"
		}
		return "does the registration authority run?"
	case strings.Contains(text, "i/o timeout"), strings.Contains(text, context.DeadlineExceeded.Error()), strings.Contains(text, "keepalive ping failed"):
		return "no answer in time: does something between the node and the registration authority drop packets?"
	}
	return ""
}

// namespace is that of the Service, or empty if the host of the URL is no Service.
func (s *Signer) namespace() string {
	labels := strings.Split(s.url.Hostname(), ".")
	if len(labels) < 3 || labels[2] != "svc" {
		return ""
	}
	return labels[1]
}
