package server

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
)

// signEntry is the entry of one signing request in the audit log. Fields that are not
// known yet have their zero value.
type signEntry struct {
	issuer  string
	caller  issuer.Pod
	pod     issuer.Pod
	request *issuer.Request
}

// log writes the entry, which is one line.
func (e *signEntry) log(ctx context.Context, credential *issuer.Credential, err error, took time.Duration) {
	logger := klog.FromContext(ctx)
	values := append(e.values(), "took", took.String())
	if err != nil {
		message := "Request denied"
		if isFailure(code(err)) {
			message = "Request failed"
		}
		logger.Error(err, message, append(values, "code", code(err).String())...)
		return
	}
	leaf := credential.Leaf()
	logger.Info("Certificate signed", append(values, "serial", leaf.SerialNumber.String(), "notAfter", leaf.NotAfter.UTC().Format(time.RFC3339))...)
}

// isFailure tells whether a call with this code failed, rather than was denied.
func isFailure(c codes.Code) bool {
	switch c {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.Internal:
		return true
	}
	return false
}

// values are the caller, the pod and the request, as far as they are known.
func (e *signEntry) values() []any {
	values := []any{"issuer", e.issuer}
	if e.caller.Node != "" {
		values = append(values, "node", e.caller.Node, "plugin", e.caller.Name)
	}
	if e.pod.Name != "" {
		values = append(values, "pod", e.pod.Namespace+"/"+e.pod.Name, "uid", e.pod.UID, "serviceAccount", e.pod.ServiceAccount, "podNode", e.pod.Node)
	}
	r := e.request
	if r == nil {
		return values
	}
	values = append(values, "commonName", r.CommonName.String(), "dnsNames", names.Texts(r.DNSNames))
	if len(r.IPAddresses) > 0 {
		values = append(values, "ipAddresses", names.Texts(r.IPAddresses))
	}
	if len(r.URIs) > 0 {
		values = append(values, "uris", names.Texts(r.URIs))
	}
	if len(r.EmailAddresses) > 0 {
		values = append(values, "emailAddresses", names.Texts(r.EmailAddresses))
	}
	return append(values, "keyType", r.KeyType, "duration", r.Duration.String())
}
