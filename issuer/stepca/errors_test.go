package stepca

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/url"
	"os"
	"syscall"
	"testing"

	"github.com/flexstack/step-csi/issuer"
)

// What the network answers, as a person reads it: the sentence names the CA, and what to
// check. The other causes are in issuer/ra/server.
func TestSentencesAboutTheNetwork(t *testing.T) {
	dial := func(err error) error { return &net.OpError{Op: "dial", Net: "tcp", Err: err} }
	refused := os.NewSyscallError("connect", syscall.ECONNREFUSED)
	for _, test := range []struct {
		url  string
		err  error
		want string
	}{
		{"https://ca", dial(refused),
			"the CA https://ca cannot be reached: dial tcp: connect: connection refused (the issuer's url has no port, which means 443; step-ca listens on 9000 unless configured otherwise)"},
		{"https://ca:9001", dial(os.NewSyscallError("connect", syscall.EHOSTUNREACH)),
			"the CA https://ca:9001 cannot be reached: dial tcp: connect: no route to host (check the port of the issuer's url: step-ca listens on 9000 unless configured otherwise)"},
		{"https://ca:9000", dial(refused),
			"the CA https://ca:9000 cannot be reached: dial tcp: connect: connection refused"},
		{"https://ca:9000", dial(os.ErrDeadlineExceeded),
			"the CA https://ca:9000 cannot be reached: dial tcp: i/o timeout (no answer in time: does something on the way drop packets?)"},
		{"https://caa:9000", dial(&net.DNSError{Err: "no such host", Name: "caa", IsNotFound: true}),
			"the CA https://caa:9000 cannot be reached: dial tcp: lookup caa: no such host (check the host of the issuer's url, and the cluster's DNS)"},
		{"https://ca", os.ErrDeadlineExceeded,
			"the CA https://ca gives no answer in time: i/o timeout (the issuer's url has no port, which means 443; step-ca listens on 9000 unless configured otherwise)"},
		{"https://ca:9000", os.ErrDeadlineExceeded,
			"the CA https://ca:9000 gives no answer in time: i/o timeout (is the CA overloaded, or does something on the way drop packets?)"},
		{"https://ca:9000", &net.OpError{Op: "read", Net: "tcp", Err: os.NewSyscallError("read", syscall.ECONNRESET)},
			"the CA https://ca:9000 cut the connection: read tcp: read: connection reset by peer"},
		{"https://ca:9000", &tls.CertificateVerificationError{Err: x509.HostnameError{Certificate: &x509.Certificate{DNSNames: []string{"step-ca"}}, Host: "ca"}},
			"the CA https://ca:9000 is not trusted: tls: failed to verify certificate: x509: certificate is valid for step-ca, not ca; use a host of the certificate in the issuer's url, or add the host to dnsNames in the CA's ca.json"},
	} {
		u, err := url.Parse(test.url)
		if err != nil {
			t.Fatal(err)
		}
		err = (&Signer{url: u}).explain(t.Context(), "sign", test.err)
		if err.Error() != test.want || issuer.OutcomeOf(err) != issuer.Unavailable {
			t.Errorf("%s:\n got %v\nwant %s", issuer.OutcomeOf(err).Label(), err, test.want)
		}
	}
}
