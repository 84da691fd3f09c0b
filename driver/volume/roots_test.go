package volume_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.step.sm/crypto/minica"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/textlogger"

	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/driver/payload"
	"github.com/flexstack/step-csi/driver/tmpfs"
	"github.com/flexstack/step-csi/driver/volume"
	"github.com/flexstack/step-csi/issuer"
)

// rootUntil returns a root that expires at that time.
func rootUntil(t *testing.T, notBefore, notAfter time.Time) *x509.Certificate {
	t.Helper()
	key, err := issuer.ECDSAP256.Generate()
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(notAfter.UnixNano()), Subject: pkix.Name{CommonName: "Root until " + notAfter.Format(time.RFC3339)},
		NotBefore: notBefore, NotAfter: notAfter,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key.Signer)
	must(t, err)
	root, err := x509.ParseCertificate(der)
	must(t, err)
	return root
}

// answer makes the issuer learn these roots.
func (f *fixture) answer(roots ...*x509.Certificate) {
	f.signer.roots.Store(&roots)
	f.follow()
}

// set returns the name of the set of files in use, and the contents of the file.
func (f *fixture) set(name string) (set string, data []byte) {
	f.t.Helper()
	set, err := os.Readlink(filepath.Join(f.path, payload.DataLink))
	must(f.t, err)
	data, err = os.ReadFile(filepath.Join(f.path, name))
	must(f.t, err)
	return set, data
}

func encoded(roots ...*x509.Certificate) []byte {
	var b bytes.Buffer
	for _, root := range roots {
		_ = pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: root.Raw})
	}
	return b.Bytes()
}

// The same roots in another order, or repeated, change no file, and a renewal writes the
// same bytes.
func TestRootsAreASet(t *testing.T) {
	f := newFixture(t)
	own := f.signer.ca.Root
	now := time.Now()
	older, newer := rootUntil(t, now.Add(-48*time.Hour), now.Add(time.Hour)), rootUntil(t, now.Add(time.Hour), now.Add(2*time.Hour))
	f.answer(newer, own, older)
	v := f.create()
	first, data := f.set("ca.crt")
	if want := encoded(older, own, newer); !bytes.Equal(data, want) {
		t.Errorf("ca.crt does not have the oldest root first:\n%s", data)
	}
	for _, roots := range [][]*x509.Certificate{{older, own, newer}, {own, newer, older}, {own, own, newer, older, older}} {
		f.answer(roots...)
		if changed, err := v.ReplaceRoots(); changed || err != nil {
			t.Errorf("ReplaceRoots: changed %v, error %v", changed, err)
		}
		adopted, err := volume.Adopt(t.Context(), f.node, f.spec) // after a restart
		must(t, err)
		if changed, err := adopted.ReplaceRoots(); changed || err != nil {
			t.Errorf("ReplaceRoots after a restart: changed %v, error %v", changed, err)
		}
		if set, _ := f.set("ca.crt"); set != first {
			t.Errorf("the files were written again: %s instead of %s", set, first)
		}
		must(t, v.Renew(t.Context()))
		first2, renewed := f.set("ca.crt")
		if first = first2; !bytes.Equal(renewed, data) {
			t.Errorf("a renewal wrote the roots in another order:\n%s", renewed)
		}
	}
}

// A set that differs in one root of the same number is not the same.
func TestOtherRootsOfTheSameNumber(t *testing.T) {
	f := newFixture(t)
	own, other := f.signer.ca.Root, rootUntil(t, time.Now(), time.Now().Add(time.Hour))
	f.answer(own, other)
	v := f.create()
	f.answer(own, own)
	if changed, err := v.ReplaceRoots(); !changed || err != nil {
		t.Errorf("ReplaceRoots: changed %v, error %v", changed, err)
	}
	if _, data := f.set("ca.crt"); !bytes.Equal(data, encoded(own)) {
		t.Errorf("ca.crt:\n%s", data)
	}
}

// An earlier version wrote the roots in the order of the CA. They are not written again
// after an upgrade, unless the file has something else.
func TestRootsInTheOrderOfAnEarlierVersion(t *testing.T) {
	for name, test := range map[string]struct {
		write   func(all []*x509.Certificate) []byte
		changed bool
	}{
		"another order": {func(all []*x509.Certificate) []byte { slices.Reverse(all); return encoded(all...) }, false},
		"one missing":   {func(all []*x509.Certificate) []byte { return encoded(all[:1]...) }, true},
		"one twice":     {func(all []*x509.Certificate) []byte { return encoded(all[0], all[0]) }, true},
		"a text before": {func(all []*x509.Certificate) []byte { return append([]byte("x\n"), encoded(all...)...) }, true},
		"a key between": {func(all []*x509.Certificate) []byte {
			return bytes.Replace(encoded(all...), []byte("-----BEGIN"), []byte(anotherKey+"-----BEGIN"), 2)
		}, true},
		"half of it": {func(all []*x509.Certificate) []byte { return encoded(all...)[:1000] }, true},
		"empty":      {func([]*x509.Certificate) []byte { return nil }, true},
		"no link":    {nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			other := rootUntil(t, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
			f.answer(f.signer.ca.Root, other)
			f.create()
			_, right := f.set("ca.crt")
			all := []*x509.Certificate{other, f.signer.ca.Root}
			if !bytes.Equal(right, encoded(all...)) {
				t.Fatal("ca.crt is not the one that this test changes")
			}
			f.damage(func(r *os.Root) error {
				if test.write == nil {
					return r.Remove("ca.crt")
				}
				return rewritten("ca.crt", func(string) string { return string(test.write(all)) })(r)
			})
			v, err := volume.Find(f.node, "mount") // as the next process does
			must(t, err)
			if changed, err := v.ReplaceRoots(); changed != test.changed || err != nil {
				t.Errorf("ReplaceRoots: changed %v, error %v", changed, err)
			}
			if _, data := f.set("ca.crt"); test.changed && !bytes.Equal(data, right) {
				t.Errorf("ca.crt:\n%s", data)
			}
		})
	}
}

// damage changes the files below the mount.
func (f *fixture) damage(change func(*os.Root) error) {
	f.t.Helper()
	target, err := f.node.Targets.Open("mount")
	must(f.t, err)
	defer target.Close()
	tree, err := tmpfs.Clone(target)
	must(f.t, err)
	defer tree.Close()
	root, err := tree.Root()
	must(f.t, err)
	defer root.Close()
	must(f.t, change(root))
}

// Expired roots are left out of a new volume. A root that expires while it is mounted is
// taken out at the next refresh. Each is logged once. A root that is not valid yet is kept.
func TestExpiredRootsAreLeftOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		own := f.signer.ca.Root
		now := time.Now()
		expired, soon := rootUntil(t, now.Add(-time.Hour), now.Add(-time.Minute)), rootUntil(t, now.Add(-time.Hour), now.Add(time.Hour))
		later := rootUntil(t, now.Add(time.Hour), now.Add(2*time.Hour))
		f.signer.roots.Store(&[]*x509.Certificate{expired, soon, own, later})
		v := f.create()
		if _, data := f.set("ca.crt"); !bytes.Equal(data, encoded(soon, own, later)) {
			t.Errorf("ca.crt has expired roots, or lacks others:\n%s", data)
		}
		var log bytes.Buffer
		ctx, stop := context.WithCancel(klog.NewContext(t.Context(), textlogger.NewLogger(textlogger.NewConfig(textlogger.Output(&log)))))
		defer stop()
		refreshed := 0
		go f.node.Issuers["default"].FollowRoots(ctx, 5*time.Minute, func(issuer.Roots, error) {
			refreshed++
			if _, err := v.ReplaceRoots(); err != nil {
				t.Error(err)
			}
		})
		time.Sleep(30 * time.Minute)
		synctest.Wait()
		if _, data := f.set("ca.crt"); !bytes.Equal(data, encoded(soon, own, later)) {
			t.Errorf("ca.crt before a root expires:\n%s", data)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if _, data := f.set("ca.crt"); !bytes.Equal(data, encoded(own, later)) {
			t.Errorf("ca.crt after a root expired:\n%s", data)
		}
		stop()
		synctest.Wait()
		const message = "A root of the CA has expired"
		if got := strings.Count(log.String(), message); got != 2 || refreshed < 15 {
			t.Errorf("logged %d times in %d refreshes:\n%s", got, refreshed, &log)
		}
	})
}

// When no root of the CA is left, the mounted file stays as it is, and the log and the
// errors say so.
func TestAllRootsExpired(t *testing.T) {
	f := newFixture(t)
	v := f.create()
	set, data := f.set("ca.crt")
	now := time.Now()
	f.signer.roots.Store(&[]*x509.Certificate{
		rootUntil(t, now.Add(-time.Hour), now.Add(-time.Minute)), rootUntil(t, now.Add(-time.Hour), now.Add(-time.Second)),
	})
	var log bytes.Buffer
	ctx, stop := context.WithCancel(klog.NewContext(t.Context(), textlogger.NewLogger(textlogger.NewConfig(textlogger.Output(&log)))))
	refreshed := 0
	f.node.Issuers["default"].FollowRoots(ctx, time.Millisecond, func(issuer.Roots, error) {
		if refreshed++; refreshed == 3 {
			stop()
		}
	})
	if changed, err := v.ReplaceRoots(); changed || err != nil {
		t.Errorf("ReplaceRoots: changed %v, error %v", changed, err)
	}
	const want = "all roots of the CA have expired"
	if err := v.Renew(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("Renew: %v", err)
	}
	if nowSet, now := f.set("ca.crt"); nowSet != set || !bytes.Equal(now, data) {
		t.Errorf("the files were written again: %s instead of %s:\n%s", nowSet, set, now)
	}
	if strings.Count(log.String(), want) != 1 {
		t.Errorf("not logged once:\n%s", &log)
	}
	f.spec.VolumeID, f.spec.Target = "csi-2", "other"
	if _, err := volume.Create(t.Context(), f.node, f.spec, issuer.Token{}); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("Create: %v", err)
	}
}

// Federated roots come after the CA's own, whatever their age.
func TestFederatedRootsComeLast(t *testing.T) {
	now := time.Now()
	own, err := minica.New()
	must(t, err)
	a, b := rootUntil(t, now.Add(-2*time.Hour), now.Add(time.Hour)), rootUntil(t, now.Add(-time.Hour), now.Add(time.Hour))
	want := encoded(own.Root, a, b)
	for _, federated := range [][]*x509.Certificate{{a, own.Root, b}, {b, a}, {own.Root, b, b, a}} {
		got, err := payload.EncodeTrust(issuer.Roots{Own: []*x509.Certificate{own.Root}, Federated: federated},
			attributes.Attributes{Files: attributes.Files{CA: "ca.crt"}}, payload.Password{})
		must(t, err)
		if !bytes.Equal(got[0].Data, want) {
			t.Errorf("%d federated roots:\n%s", len(federated), got[0].Data)
		}
	}
}
