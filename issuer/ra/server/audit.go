package server

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
)

// auditEntry is the line of one request in the audit log: keys and values, as far as
// they are known.
type auditEntry []any

func (e *auditEntry) add(keysAndValues ...any) { *e = append(*e, keysAndValues...) }

// addCaller adds the caller, unless it is unknown.
func (e *auditEntry) addCaller(caller issuer.Pod) {
	if caller.Node != "" {
		e.add("node", caller.Node, "plugin", caller.Name)
	}
}

// addPod adds the pod, unless it is unknown.
func (e *auditEntry) addPod(pod issuer.Pod) {
	if pod.Name != "" {
		e.add("pod", pod.Namespace+"/"+pod.Name, "uid", pod.UID, "serviceAccount", pod.ServiceAccount, "podNode", pod.Node)
	}
}

func (e *auditEntry) addRequest(r issuer.Request) {
	e.add("commonName", r.CommonName.String(), "dnsNames", names.Texts(r.DNSNames))
	if len(r.IPAddresses) > 0 {
		e.add("ipAddresses", names.Texts(r.IPAddresses))
	}
	if len(r.URIs) > 0 {
		e.add("uris", names.Texts(r.URIs))
	}
	if len(r.EmailAddresses) > 0 {
		e.add("emailAddresses", names.Texts(r.EmailAddresses))
	}
	for _, field := range names.SubjectFields() {
		if values := *field.Of(&r.Subject); len(values) > 0 {
			e.add(field.Key, names.Texts(values))
		}
	}
	if data := r.TemplateData.String(); data != "" {
		e.add("templateData", data) // whole: any key of it may decide about the certificate
	}
	duration := "default"
	if r.Duration > 0 {
		duration = r.Duration.String()
	}
	e.add("keyType", r.KeyType, "duration", duration)
}

// logError logs a request that was denied, or that failed for another reason.
func (e *auditEntry) logError(ctx context.Context, err error, denied, failed string) {
	message := denied
	switch code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.Internal:
		message = failed
	}
	klog.FromContext(ctx).Error(errors.New(clip(err.Error(), maxLoggedError)), message, append(*e, "code", code(err).String())...)
}
