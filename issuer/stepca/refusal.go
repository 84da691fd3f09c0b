package stepca

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
)

// How step-ca v0.30 words its refusals.
const (
	refusedLong       = "is more than the authorized maximum certificate duration"
	refusedShort      = "is less than the authorized minimum certificate duration"
	refusedCredential = "is after the expiration of the provisioning credential"
	refusedName       = `" not allowed`
	brokenTemplate    = "error applying certificate template"
)

// failedInput follows an internal error of the CA for a request with input of the pod.
const failedInput = " (the provisioner's X.509 template may fail for the pod's subject fields or template data: the reason is in the CA's log. " +
	"Change them, or correct the template)"

// isTooLong tells whether the CA refuses the requested lifetime because it is too long.
func isTooLong(err error) bool {
	if statusOf(err) != http.StatusForbidden {
		return false
	}
	message := plain(err).Error()
	return strings.Contains(message, refusedLong) || strings.Contains(message, refusedCredential)
}

// setting says which setting of the CA refuses a certificate, and what to change.
func setting(err error) string {
	status, message := statusOf(err), plain(err).Error()
	switch {
	case status == http.StatusForbidden && strings.Contains(message, refusedLong):
		return " (step-ca adds a minute. The maximum is the claim maxTLSCertDuration of the provisioner or of the whole CA. " +
			"Request less, by the attribute duration or the issuer's duration.default, or run at the CA: step ca provisioner update NAME --x509-max-dur=DURATION)"
	case status == http.StatusForbidden && strings.Contains(message, refusedShort):
		return " (step-ca adds a minute. The minimum is the claim minTLSCertDuration of the provisioner or of the whole CA. " +
			"Request more, by the attribute duration or the issuer's duration.default, or run at the CA: step ca provisioner update NAME --x509-min-dur=DURATION)"
	case status == http.StatusForbidden && strings.Contains(message, refusedCredential):
		return " (a certificate lives no longer than the one that signs the tokens of an X5C provisioner: " +
			"request less, by the attribute duration or the issuer's duration.default, or give that one a longer lifetime)"
	case status == http.StatusForbidden && strings.Contains(message, refusedName):
		return " (the policy of the CA or of its provisioner denies the name: request another, or change x509.allow and x509.deny of that policy)"
	case status == http.StatusBadRequest:
		return " (the provisioner's X.509 template refuses the request with this reason)"
	case strings.Contains(message, brokenTemplate):
		return " (what the provisioner's X.509 template gives for this request is not the JSON of a certificate: correct the template)"
	}
	return ""
}

// namedRefusal replaces the answer by which step-ca refuses a name because of the policy
// of a provisioner. Unlike all its other refusals, that has the status of a failure, and
// neither status nor message in its body:
// https://github.com/smallstep/certificates/blob/v0.30.2/policy/engine.go
func namedRefusal(status int, body []byte) (int, []byte) {
	var refusal struct {
		Reason         int // policy.NamePolicyReason
		NameType, Name string
		Status         int
	}
	if status != http.StatusInternalServerError || json.Unmarshal(body, &refusal) != nil ||
		refusal.Status != 0 || refusal.Reason == 0 || refusal.NameType == "" {
		return status, body
	}
	named, err := json.Marshal(map[string]any{
		"status":  http.StatusForbidden,
		"message": fmt.Sprintf("%s name %q not allowed", refusal.NameType, refusal.Name),
	})
	if err != nil {
		return status, body
	}
	return http.StatusForbidden, named
}
