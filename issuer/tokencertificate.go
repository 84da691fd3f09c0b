package issuer

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/flexstack/step-csi/issuer/chartvalue"
)

// TokenCertificate is a Signer that authenticates to its CA with a certificate of its own,
// which somebody else renews. When the certificate expires, the CA signs nothing.
type TokenCertificate interface {
	// TokenCertificate returns when the certificate was issued, and when it expires. The
	// times are zero if the signer has not read it yet, or uses none.
	TokenCertificate() (issued, expires time.Time)
}

// tokenCertificate is the validity of the certificate that signs tokens.
type tokenCertificate struct{ issued, expires time.Time }

// warning says that the certificate is about to expire. The text is empty if it is not.
// Programs that renew certificates do so after two thirds of their lifetime.
func (c tokenCertificate) warning(now time.Time) string {
	if c.expires.IsZero() || c.expires.Sub(now) >= c.expires.Sub(c.issued)/5 {
		return ""
	}
	return fmt.Sprintf("the certificate in %s expires at %s, and the CA signs nothing that outlives it; renew it, and replace the files",
		chartvalue.Beside("provisioner.certificateFile"), c.expires.Format(time.RFC3339))
}

var (
	tokenCertificateExpiresDesc = prometheus.NewDesc("step_csi_issuer_token_certificate_expiration_timestamp_seconds",
		"When the certificate expires by which the issuer authenticates to its CA. Only for X5C provisioners, and of processes that call the CA.",
		[]string{"issuer"}, nil)
	tokenCertificateIssuedDesc = prometheus.NewDesc("step_csi_issuer_token_certificate_issued_timestamp_seconds",
		"When the certificate was issued by which the issuer authenticates to its CA, by its notBefore. Only for X5C provisioners, and of processes that call the CA.",
		[]string{"issuer"}, nil)
)

// collect sends the metrics, if there is a certificate.
func (c tokenCertificate) collect(out chan<- prometheus.Metric, name string) {
	if c.expires.IsZero() {
		return
	}
	out <- prometheus.MustNewConstMetric(tokenCertificateExpiresDesc, prometheus.GaugeValue, float64(c.expires.Unix()), name)
	out <- prometheus.MustNewConstMetric(tokenCertificateIssuedDesc, prometheus.GaugeValue, float64(c.issued.Unix()), name)
}
