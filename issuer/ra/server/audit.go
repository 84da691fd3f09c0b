package server

import (
	"context"
	"net/netip"
	"net/url"
	"time"

	"google.golang.org/grpc/codes"
	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer"
)

// decision is what is known about one request to sign, for the audit log. What
// has not been learnt yet is the zero value.
type decision struct {
	issuer  string
	caller  issuer.Pod
	pod     issuer.Pod
	request *issuer.Request
}

// record writes the one line that each decision gets.
func (d *decision) record(ctx context.Context, credential *issuer.Credential, err error, took time.Duration) {
	logger := klog.FromContext(ctx)
	values := append(d.values(), "took", took.String())
	switch c := code(err); c {
	case codes.OK:
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.Internal:
		logger.Error(err, "Failed", append(values, "code", c.String())...)
		return
	default:
		logger.Error(err, "Refused", append(values, "code", c.String())...)
		return
	}
	leaf := credential.Leaf()
	logger.Info("Signed", append(values, "serial", leaf.SerialNumber.String(), "notAfter", leaf.NotAfter.UTC().Format(time.RFC3339))...)
}

// values say who asked for what.
func (d *decision) values() []any {
	values := []any{"issuer", d.issuer}
	if d.caller.Node != "" {
		values = append(values, "node", d.caller.Node, "plugin", d.caller.Name)
	}
	if d.pod.Name != "" {
		values = append(values, "pod", d.pod.Namespace+"/"+d.pod.Name, "uid", d.pod.UID, "serviceAccount", d.pod.ServiceAccount, "podNode", d.pod.Node)
	}
	if r := d.request; r != nil {
		values = append(values, "commonName", r.CommonName, "dnsNames", r.DNSNames)
		values = nonEmpty(values, "ipAddresses", texts(r.IPAddresses, netip.Addr.String))
		values = nonEmpty(values, "uris", texts(r.URIs, (*url.URL).String))
		values = nonEmpty(values, "emailAddresses", r.EmailAddresses)
		values = append(values, "keyType", r.KeyType, "duration", r.Duration.String())
	}
	return values
}

func nonEmpty(values []any, key string, all []string) []any {
	if len(all) == 0 {
		return values
	}
	return append(values, key, all)
}

func texts[T any](values []T, text func(T) string) []string {
	all := make([]string, len(values))
	for i, v := range values {
		all[i] = text(v)
	}
	return all
}
