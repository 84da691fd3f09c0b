// Package logs has the log messages that tests wait for. A message that changes in
// the code changes here, and nowhere else in test.
package logs

// The plugin and the authority log these. Each is a whole message, in the quotes
// that klog puts around it, unless its comment says that it is a part.
const (
	Connected        = `"Issuer connected"`
	CannotConnect    = `"Cannot connect to the issuer"`
	Waiting          = `"Waiting for the issuer"`
	HoldersRenew     = `"Warning: the CA renews certificates for their holders"`
	TokenExpiring    = `"Warning: the certificate that signs tokens is about to expire"`
	ServingHealth    = `"Serving health"`
	ServingAgain     = `"Serving again on a socket that somebody has removed or replaced"`
	Registered       = `"Registered with the kubelet"`
	CallSucceeded    = `"Call succeeded"`
	CallFailed       = `"Call failed"`
	Found            = `"Found mounted volumes"`
	CannotAdopt      = `"Cannot adopt a mounted volume; it is not renewed until the kubelet publishes it again"`
	Contradicts      = `"The record of a mounted volume contradicts the kubelet; the volume is renewed at once"`
	Damaged          = `"A mounted volume is damaged; it is renewed at once"`
	Renewed          = `"Certificate renewed"`
	RenewalFailed    = `"Renewal failed"`
	Expiring         = `"Certificate expiring"`
	RenewalsStopped  = `"Renewals stopped until the kubelet publishes the volume again"`
	LeftBehind       = `"Mounted volumes of another driver name are not renewed"`
	NoSVID           = `"The certificate is no X.509-SVID` // a part
	Revoked          = `"Certificate revoked"`
	NotRevoked       = `"Revocation failed`                                                                                             // a part
	CannotRevoke     = `"This issuer cannot revoke certificates`                                                                        // a part
	RevokeByHand     = `step ca revoke `                                                                                                // a part; the serial number follows
	StoppingRevoking = `the plugin stops`                                                                                               // a part of an error
	NoDatabase       = `has no database, which step-ca needs to revoke; give it one (db in its ca.json), or leave revoke-on-delete out` // a part of an error
)

// The registration authority logs these, for its audit log.
const (
	Signed            = `"Certificate signed"`
	Refused           = `"Request denied"`
	RevocationRefused = `"Revocation denied"`
)

// step-csi-reload logs these.
const (
	Reloaded        = `msg=Reloaded`
	WaitingForFiles = `msg="Waiting for the files"`
	Watching        = `msg=Watching`
	UnhandledSignal = `does not handle SIGHUP` // a part
)
