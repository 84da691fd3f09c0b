// Package logs has the log messages that tests wait for. A message that changes in
// the code changes here, and nowhere else in test.
package logs

// The plugin and the authority log these. Each is a whole message, in the quotes
// that klog puts around it, unless its comment says that it is a part.
const (
	Connected        = `"Connected"`
	ServingHealth    = `"Serving health"`
	Registered       = `"Registered with the kubelet"`
	CallSucceeded    = `"Call succeeded"`
	CallFailed       = `"Call failed"`
	TookOver         = `"Took over mounted volumes"`
	CannotTakeOver   = `"Cannot take over a mounted volume"`
	Renewed          = `"Renewed"`
	RenewalFailed    = `"Renewal failed"`
	RenewalsStopped  = `"Stopped renewing a volume that is not mounted any more"`
	NoSVID           = `"The certificate is no X.509-SVID` // a part
	Revoked          = `"Revoked"`
	NotRevoked       = `"Not revoked`                                                                       // a part
	CannotRevoke     = `"Not revoked, and so it is with all certificates of this issuer`                    // a part
	RevokeByHand     = `step ca revoke `                                                                    // a part; the serial number follows
	StoppingRevoking = `the plugin stops`                                                                   // a part of an error
	NoDatabase       = `it has no database; give it one (db in its ca.json), or leave revoke-on-delete out` // a part of an error
)

// The registration authority logs these, for its audit log.
const (
	Signed            = `"Signed"`
	Refused           = `"Refused"`
	RevocationRefused = `"Revocation refused"`
)

// step-csi reload logs these.
const (
	Reloaded        = `"Reloaded"`
	WaitingForFiles = `"Waiting for the files"`
	Watching        = `"Watching"`
	UnhandledSignal = `does not handle SIGHUP` // a part
)
