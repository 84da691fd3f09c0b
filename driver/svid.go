package driver

import (
	"context"
	"slices"

	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer/names"
)

// logNoSVID says that a certificate with a SPIFFE ID is no X.509-SVID, since it
// has another URI too. Libraries refuse such certificates, in the pod and at its
// peers, far from where the other URI was asked for. See
// https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md#2-spiffe-id.
func (v *volume) logNoSVID(ctx context.Context) {
	uris := v.attributes.Request.URIs
	if len(uris) > 1 && slices.ContainsFunc(uris, func(u names.URI) bool { _, ok := u.SPIFFEID(); return ok }) {
		klog.FromContext(ctx).Info("The certificate is no X.509-SVID, which would have the SPIFFE ID as its only URI; "+
			`leave out uri-sans, or set spiffe: "false" if nobody needs the ID`, append(v.logValues(), "uris", len(uris))...)
	}
}
