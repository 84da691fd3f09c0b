package volume_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"k8s.io/klog/v2"
	"k8s.io/klog/v2/textlogger"

	"github.com/flexstack/step-csi/driver/volume"
	"github.com/flexstack/step-csi/issuer"
)

// addRoots makes additional roots those of the issuer.
func (f *fixture) addRoots(roots ...*x509.Certificate) {
	f.t.Helper()
	i, err := issuer.New(issuer.Config{
		Signer: f.signer, Policy: func(context.Context, issuer.Pod, issuer.Request) error { return nil },
		AdditionalRoots: func() ([]*x509.Certificate, error) { return roots, nil },
	})
	must(f.t, err)
	f.node.Issuers["default"].Issuer = i
	f.follow()
}

// Additional roots are in a new volume, and reach a mounted one without a new certificate.
func TestAdditionalRootsReachVolumes(t *testing.T) {
	f := newFixture(t)
	own, now := f.signer.ca.Root, time.Now()
	a, b := rootUntil(t, now.Add(-3*time.Hour), now.Add(time.Hour)), rootUntil(t, now.Add(-4*time.Hour), now.Add(2*time.Hour))
	f.addRoots(a)
	v := f.create()
	if _, data := f.set("ca.crt"); !bytes.Equal(data, encoded(own, a)) {
		t.Errorf("a new volume:\n%s", data)
	}
	_, leaf := f.set("tls.crt")
	f.addRoots(a, b)
	if changed, err := v.ReplaceRoots(); !changed || err != nil {
		t.Errorf("ReplaceRoots: changed %v, error %v", changed, err)
	}
	_, data := f.set("ca.crt")
	if _, same := f.set("tls.crt"); !bytes.Equal(data, encoded(own, b, a)) || !bytes.Equal(same, leaf) {
		t.Errorf("a mounted volume:\n%s", data)
	}
	if changed, err := v.ReplaceRoots(); changed || err != nil {
		t.Errorf("ReplaceRoots of the same roots: changed %v, error %v", changed, err)
	}
	adopted, err := volume.Adopt(t.Context(), f.node, f.spec)
	must(t, err)
	if changed, err := adopted.ReplaceRoots(); changed || err != nil {
		t.Errorf("ReplaceRoots after a restart: changed %v, error %v", changed, err)
	}
}

// A root that the CA removes, and that stays as an additional one, changes no file. The
// certificate under it is renewed early all the same, because peers outside of this cluster
// no longer accept it. This holds after a restart, too.
func TestRemovedRootStaysAsAnAdditionalOne(t *testing.T) {
	f := newFixture(t)
	own, next := f.signer.ca.Root, rootUntil(t, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	f.addRoots(own, next)
	f.answer(own)
	v := f.create()
	v.Keep(t.Context())
	t.Cleanup(v.Stop)
	f.answer(next)
	if _, err := v.ReplaceRoots(); err != nil {
		t.Error(err)
	}
	if !v.RenewEarly(t.Context()) {
		t.Error("the certificate under the removed root is not renewed early")
	}
	var log bytes.Buffer
	ctx := klog.NewContext(t.Context(), textlogger.NewLogger(textlogger.NewConfig(textlogger.Output(&log))))
	adopted, err := volume.Adopt(ctx, f.node, f.spec)
	must(t, err)
	adopted.Keep(ctx)
	t.Cleanup(adopted.Stop)
	if next := adopted.State().Next; time.Until(next) > 0 || !strings.Contains(log.String(), "The CA has removed the root of a mounted certificate") {
		t.Errorf("after a restart, the renewal is due in %s; log:\n%s", time.Until(next), &log)
	}
}

// With trust only, a root that the CA removes, and that stays as an additional one, makes way
// for the CA's own: programs that read only the first certificate need it. No renewal would
// reorder the file.
func TestOwnRootComesFirstWithTrustOnly(t *testing.T) {
	f := newFixture(t)
	own, next := f.signer.ca.Root, rootUntil(t, time.Now().Add(time.Minute), time.Now().Add(time.Hour))
	f.addRoots(own, next)
	f.spec.Attributes = map[string]string{"trust-only": "true"}
	v := f.create()
	if _, data := f.set("ca.crt"); !bytes.Equal(data, encoded(own, next)) {
		t.Fatalf("at first:\n%s", data)
	}
	f.answer(next)
	if changed, err := v.ReplaceRoots(); !changed || err != nil {
		t.Errorf("changed %v, error %v", changed, err)
	}
	if _, data := f.set("ca.crt"); !bytes.Equal(data, encoded(next, own)) {
		t.Errorf("after the removal:\n%s", data)
	}
}
