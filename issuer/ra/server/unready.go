package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"sync/atomic"

	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/ra"
)

// unready holds the certificate that tells clients why the server has none of the CA.
// It is created when the reason changes, and not for each handshake.
type unready struct {
	key         issuer.PrivateKey
	reason      string // because is not called concurrently
	certificate atomic.Pointer[tls.Certificate]
}

func newUnready(reason string) (*unready, error) {
	key, err := issuer.ECDSAP256.Generate()
	if err != nil {
		return nil, err
	}
	u := &unready{key: key}
	return u, u.set(reason)
}

func (u *unready) set(reason string) error {
	if reason == u.reason {
		return nil
	}
	certificate, err := ra.NotReadyCertificate(reason, u.key.Signer)
	if err != nil {
		return err
	}
	u.reason = reason
	u.certificate.Store(certificate)
	return nil
}

// because replaces the reason.
func (u *unready) because(ctx context.Context, reason string) {
	if err := u.set(reason); err != nil {
		klog.FromContext(ctx).Error(err, "Clients get an earlier reason why this registration authority is not ready")
	}
}

// handshakeLog is for http.Server.ErrorLog. It leaves out that node plugins end their
// handshakes because the server is not ready.
type handshakeLog struct {
	*rejections
	serving *serving
}

// Write implements io.Writer.
func (l handshakeLog) Write(line []byte) (int, error) {
	if l.serving.err() != nil && bytes.Contains(line, []byte("remote error: tls: bad certificate")) {
		return len(line), nil
	}
	return l.rejections.Write(line)
}
