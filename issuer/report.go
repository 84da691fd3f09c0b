package issuer

import "slices"

// Report tells the owner of a running pod about its certificate.
type Report struct {
	Reason Reason
	// Volume is the name of the volume in the pod's spec.
	Volume string
	// Text says what has happened, and what to change.
	Text string
}

// Reason is what a Report is about. In an event of the pod, it is the reason of the event.
type Reason string

const (
	// RenewalFailing: the certificate is valid, but cannot be renewed.
	RenewalFailing Reason = "RenewalFailing"
	// CertificateExpired: the certificate, or one of the CA that it needs, has expired.
	CertificateExpired Reason = "CertificateExpired"
	// CertificateRenewed: the certificate was renewed, after a report of another reason.
	CertificateRenewed Reason = "CertificateRenewed"
	// IssuerRemoved: the configuration of the node plugin no longer has the issuer.
	IssuerRemoved Reason = "IssuerRemoved"
	// FilesUnreadable: the mode of the files lets only root read them.
	FilesUnreadable Reason = "FilesUnreadable"
)

// Reasons lists all reasons.
func Reasons() []Reason {
	return []Reason{RenewalFailing, CertificateExpired, CertificateRenewed, IssuerRemoved, FilesUnreadable}
}

// IsKnown tells whether the reason is one of Reasons.
func (r Reason) IsKnown() bool { return slices.Contains(Reasons(), r) }

// IsWarning is false if the Report is about good news.
func (r Reason) IsWarning() bool { return r != CertificateRenewed }
