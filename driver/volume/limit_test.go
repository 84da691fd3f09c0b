package volume_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.step.sm/crypto/minica"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/textlogger"

	"github.com/flexstack/step-csi/driver/tmpfs"
	"github.com/flexstack/step-csi/driver/volume"
	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/schedule"
)

// certify makes the certificate of subject by an authority, which is valid for the duration.
func certify(t *testing.T, subject, by *x509.Certificate, signer any, valid time.Duration) *x509.Certificate {
	t.Helper()
	template := *subject
	template.NotBefore, template.NotAfter = time.Now().Add(-24*time.Hour).Truncate(time.Second), time.Now().Add(valid).Truncate(time.Second)
	template.SerialNumber = nil
	der, err := x509.CreateCertificate(rand.Reader, &template, by, subject.PublicKey, signer)
	must(t, err)
	c, err := x509.ParseCertificate(der)
	must(t, err)
	return c
}

// recertify gives the CA another certificate of the same intermediate.
func (f *fixture) recertify(valid time.Duration) {
	f.t.Helper()
	next := *f.signer.ca
	next.Intermediate = certify(f.t, next.Intermediate, next.Root, next.RootSigner, valid)
	f.signer.ca = &next
}

func (f *fixture) expectLimited(v *volume.Volume, by *x509.Certificate) {
	f.t.Helper()
	got := v.State().Validity
	if !got.NotAfter.Equal(by.NotAfter) || !strings.Contains(got.LimitedBy, by.SerialNumber.String()) || !got.LeafNotAfter.Equal(f.check().Leaf.NotAfter) {
		f.t.Errorf("%+v, want the expiry of %s", got, by.SerialNumber)
	}
}

// The effective expiry of a volume is that of its chain: after a publish, in its record after a
// restart, when the kubelet publishes it again, and after a renewal.
func TestVolumeIsLimitedByItsChain(t *testing.T) {
	f := newFixture(t)
	f.recertify(10 * time.Minute)
	intermediate := f.signer.ca.Intermediate
	v := f.create()
	f.expectLimited(v, intermediate)
	found, err := volume.Find(f.node, "mount")
	must(t, err)
	f.expectLimited(found, intermediate)
	adopted, err := volume.Adopt(t.Context(), f.node, f.spec)
	must(t, err)
	f.expectLimited(adopted, intermediate)
	adopted.Keep(t.Context())
	if due := adopted.State().Next; time.Until(due) > 8*time.Minute {
		t.Errorf("the renewal is due in %s", time.Until(due))
	}

	// Nothing better is to be had.
	before := f.check().Leaf
	if err := v.Renew(t.Context()); !errors.Is(err, schedule.ErrLimited) || !strings.Contains(err.Error(), intermediate.SerialNumber.String()) ||
		!strings.Contains(err.Error(), "issuer default") {
		t.Errorf("a renewal that gains nothing: %v", err)
	}
	if f.check().Leaf.Equal(before) {
		t.Error("the new certificate is not mounted")
	}
	f.expectLimited(v, intermediate)
	f.recertify(10*time.Minute + 2*time.Second) // a bit better
	must(t, v.Renew(t.Context()))
	f.expectLimited(v, f.signer.ca.Intermediate)
	f.recertify(30 * time.Hour)
	must(t, v.Renew(t.Context()))
	if got, leaf := v.State().Validity, f.check().Leaf; got.LimitedBy != "" || !got.NotAfter.Equal(leaf.NotAfter) || !got.LeafNotAfter.IsZero() {
		t.Errorf("%+v", got)
	}
	found, err = volume.Find(f.node, "mount")
	must(t, err)
	if got := found.State().Validity; got.LimitedBy != "" || !got.NotAfter.Equal(f.check().Leaf.NotAfter) {
		t.Errorf("the record has %+v", got)
	}

	// An expired chain is not mounted.
	mounted := f.check().Leaf
	f.recertify(-time.Minute)
	if err := v.Renew(t.Context()); err == nil || !strings.Contains(err.Error(), "expired at") {
		t.Errorf("an expired intermediate: %v", err)
	}
	if !f.check().Leaf.Equal(mounted) {
		t.Error("a certificate with an expired chain is mounted")
	}
}

// A volume that the CA limits is renewed early once, when the CA has shown a chain that is
// valid longer; other volumes are not.
func TestRenewEarly(t *testing.T) {
	f := newFixture(t)
	f.node.MinInterval = time.Minute
	f.recertify(10 * time.Minute)
	v := f.create()
	v.Keep(t.Context())
	if v.RenewEarly(t.Context()) {
		t.Error("renewed early without a new intermediate")
	}
	limited := f.signer.ca
	f.recertify(30 * time.Hour)
	other := f.anotherCertificate() // shows the new intermediate
	if !v.RenewEarly(t.Context()) || time.Until(v.State().Next) > time.Minute {
		t.Errorf("not renewed early: the renewal is due at %s", v.State().Next)
	}
	if v.RenewEarly(t.Context()) {
		t.Error("renewed early twice for the same chain")
	}

	// Another instance of the CA still signs with the old intermediate.
	f.signer.ca = limited
	if err := v.Renew(t.Context()); !errors.Is(err, schedule.ErrLimited) {
		t.Errorf("renewed by the old intermediate: %v", err)
	}
	if v.RenewEarly(t.Context()) {
		t.Error("renewed early again for the same chain")
	}
	f.signer.ca = other
	must(t, v.Renew(t.Context()))
	f.recertify(40 * time.Hour)
	f.anotherCertificate()
	if v.RenewEarly(t.Context()) {
		t.Error("an unlimited certificate is renewed early")
	}
}

// anotherCertificate has the CA sign for another pod, and returns the CA.
func (f *fixture) anotherCertificate() *minica.CA {
	f.t.Helper()
	spec := f.spec
	spec.VolumeID, spec.Target, spec.Pod.Name, spec.Pod.UID = "csi-2", "other", "web-1", "uid-2"
	v, err := volume.Create(f.t.Context(), f.node, spec, issuer.Token{})
	must(f.t, err)
	_, err = v.Close()
	must(f.t, err)
	return f.signer.ca
}

// New roots can change the effective expiry, without a renewal: the root was replaced by one
// with the same key, or removed.
func TestRootsChangeTheEffectiveExpiry(t *testing.T) {
	f := newFixture(t)
	ca := *f.signer.ca
	f.recertify(30 * time.Hour)
	short, long := certify(t, ca.Root, ca.Root, ca.RootSigner, 10*time.Minute), certify(t, ca.Root, ca.Root, ca.RootSigner, 100*time.Hour)
	serve := func(roots ...*x509.Certificate) {
		f.signer.roots.Store(&roots)
		f.follow()
	}
	serve(short)
	v := f.create()
	log := &bytes.Buffer{}
	ctx := klog.NewContext(t.Context(), textlogger.NewLogger(textlogger.NewConfig(textlogger.Output(log))))
	v.Keep(ctx)
	f.expectLimited(v, short)
	due := v.State().Next
	change := func() {
		t.Helper()
		if changed, err := v.ReplaceRoots(); err != nil || !changed {
			t.Errorf("changed %v, %v", changed, err)
		}
	}
	serve(short, long)
	change()
	if got := v.State(); got.Validity.LimitedBy != "" || !got.Validity.NotAfter.Equal(f.check().Leaf.NotAfter) || !got.Next.After(due) {
		t.Errorf("with the new root: %+v", got)
	}
	// The record is older than the new root. The next process finds out.
	adopted, err := volume.Adopt(ctx, f.node, f.spec)
	must(t, err)
	if got := adopted.State().Validity; got.LimitedBy != "" || !got.NotAfter.Equal(f.check().Leaf.NotAfter) {
		t.Errorf("adopted with the new root: %+v", got)
	}
	serve(short)
	change()
	f.expectLimited(v, short)
	if got := v.State().Next; !got.Equal(due) {
		t.Errorf("with the old root, the renewal is due at %s instead of %s", got, due)
	}
	if v.RenewEarly(ctx) || log.Len() > 0 {
		t.Errorf("renewed early:\n%s", log)
	}

	// No root is left for the mounted chain.
	other, err := minica.New()
	must(t, err)
	serve(other.Root)
	change()
	for _, want := range []bool{true, false} {
		if v.RenewEarly(ctx) != want || strings.Count(log.String(), "The CA has removed the root of a mounted certificate") != 1 {
			t.Errorf("renewed early: %v; log:\n%s", !want, log)
		}
	}
	if next := v.State().Next; time.Until(next) > 0 {
		t.Errorf("the renewal is due in %s", time.Until(next))
	}
}

// What a container with CAP_SYS_ADMIN writes into its volume does not make other volumes be
// renewed: only the CA shows chains.
func TestForgedChainsTellNothingAboutTheCA(t *testing.T) {
	f := newFixture(t)
	f.recertify(10 * time.Minute)
	f.create()
	before := f.node.Issuers["default"].CANotAfter()
	forged := newFixture(t)
	forged.recertify(20 * time.Hour)
	forged.create()
	target, err := f.node.Targets.Open("mount")
	must(t, err)
	defer target.Close()
	tree, err := tmpfs.Clone(target)
	must(t, err)
	defer tree.Close()
	root, err := tree.Root()
	must(t, err)
	defer root.Close()
	for _, name := range usual.All() {
		data, err := os.ReadFile(filepath.Join(forged.path, name))
		must(t, err)
		must(t, rewritten(name, func(string) string { return string(data) })(root))
	}
	adopted, err := volume.Adopt(context.Background(), f.node, f.spec)
	must(t, err)
	adopted.Keep(t.Context())
	if after := f.node.Issuers["default"].CANotAfter(); !after.Equal(before) {
		t.Errorf("the CA's chain is valid until %s instead of %s", after, before)
	}
}
