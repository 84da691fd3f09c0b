package volume_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/driver/tmpfs"
	"github.com/flexstack/step-csi/driver/volume"
	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/test/keystores"
)

// newTrustFixture is newFixture with a volume that has trust only, whose issuer refuses to
// sign.
func newTrustFixture(t *testing.T) *fixture {
	f := newFixture(t)
	i, err := issuer.New(issuer.Config{Signer: neverSigning{f.signer, t}, Policy: func(context.Context, issuer.Pod, issuer.Request) error {
		t.Error("the policy was asked")
		return issuer.Denied
	}})
	must(t, err)
	f.node.Issuers["default"].Issuer = i
	f.spec.Attributes = map[string]string{"trust-only": "true", "ca-directory": "certs"}
	f.follow()
	return f
}

// neverSigning is a signer that must not be asked to sign.
type neverSigning struct {
	*pausingSigner
	t *testing.T
}

func (s neverSigning) Sign(context.Context, issuer.SigningRequest) ([]*x509.Certificate, error) {
	s.t.Error("the CA was asked to sign")
	return nil, issuer.Denied
}

// expectTrust checks that the volume has exactly these roots, and no other file.
func (f *fixture) expectTrust(what string, roots ...*x509.Certificate) {
	f.t.Helper()
	root, err := os.OpenRoot(f.path)
	must(f.t, err)
	defer root.Close()
	got, err := volume.CheckTrust(root, attributes.Files{CA: "ca.crt", CADirectory: "certs"})
	if err != nil || !slices.EqualFunc(got, roots, (*x509.Certificate).Equal) {
		f.t.Errorf("%s: %d roots instead of %d: %v", what, len(got), len(roots), err)
	}
	var names []string
	for _, pattern := range []string{"*", "..data/*"} {
		found, err := filepath.Glob(filepath.Join(f.path, pattern))
		must(f.t, err)
		for _, path := range found {
			if name := filepath.Base(path); !strings.HasPrefix(name, "..") {
				names = append(names, name)
			}
		}
	}
	if want := []string{"ca.crt", "certs", "ca.crt", "certs"}; !slices.Equal(names, want) {
		f.t.Errorf("%s: the files are %q", what, names)
	}
}

// A volume with trust only has the roots, without a call to sign, and follows them. It has no
// certificate, and nothing to renew or to revoke.
func TestTrustOnly(t *testing.T) {
	f := newTrustFixture(t)
	own := f.signer.ca.Root
	v := f.create()
	v.Keep(t.Context())
	f.expectTrust("a new volume", own)
	next := rootUntil(t, time.Now().Add(time.Minute), time.Now().Add(time.Hour))
	f.answer(own, next)
	if changed, err := v.ReplaceRoots(); !changed || err != nil {
		t.Errorf("changed %t, %v", changed, err)
	}
	f.expectTrust("with another root", own, next)
	if changed, err := v.ReplaceRoots(); changed || err != nil {
		t.Errorf("the same roots: changed %t, %v", changed, err)
	}
	if s := v.State(); !v.TrustOnly() || s.Err != nil || s.Failures != 0 || !s.Validity.NotAfter.IsZero() || !s.Next.IsZero() || v.Serial() != "" || len(v.Names()) > 0 || v.RenewEarly(t.Context()) {
		t.Errorf("state %+v, serial %q, names %q", s, v.Serial(), v.Names())
	}
	if r, err := v.Close(); r != nil || err != nil {
		t.Errorf("Close: %v, %v", r, err)
	}
	if mounted, err := volume.IsMounted(f.node, "mount"); mounted || err != nil {
		t.Errorf("mounted: %t, %v", mounted, err)
	}
}

// After a restart, the roots follow before the kubelet publishes the volume, and after it.
func TestTrustOnlyAfterARestart(t *testing.T) {
	f := newTrustFixture(t)
	own := f.signer.ca.Root
	f.create()
	older, newer := rootUntil(t, time.Now().Add(-time.Hour*100), time.Now().Add(time.Hour)), rootUntil(t, time.Now().Add(time.Minute), time.Now().Add(time.Hour))
	f.answer(older, own)
	found, err := volume.Find(f.node, "mount")
	must(t, err)
	found.Keep(t.Context())
	f.expectTrust("found", older, own)
	if s := found.State(); !found.TrustOnly() || s.Err != nil || !s.Validity.NotAfter.IsZero() {
		t.Errorf("found: %+v", s)
	}
	f.answer(own, newer)
	adopted, err := volume.Adopt(t.Context(), f.node, f.spec)
	must(t, err)
	adopted.Keep(t.Context())
	f.expectTrust("adopted", own, newer)
	set, _ := f.set("ca.crt")
	again, err := volume.Adopt(t.Context(), f.node, f.spec)
	must(t, err)
	again.Keep(t.Context())
	if same, _ := f.set("ca.crt"); same != set {
		t.Error("the same roots were written again")
	}
}

// Whatever a container does to the files and to the record, Adopt and Keep repair it.
func TestDamagedTrustOnlyIsRepaired(t *testing.T) {
	for name, change := range map[string]func(*os.Root) error{
		"no file":      func(r *os.Root) error { return r.Remove("ca.crt") },
		"no directory": func(r *os.Root) error { return r.Remove("certs") },
		"no data":      func(r *os.Root) error { return r.Remove("..data") },
		"another root": rewritten("ca.crt", func(string) string { return string(encoded(rootUntil(t, time.Now(), time.Now().Add(time.Hour)))) }),
		"a root more": func(r *os.Root) error {
			return r.WriteFile("..data/certs/00000000.0", encoded(rootUntil(t, time.Now(), time.Now().Add(time.Hour))), 0o600)
		},
		"a FIFO instead of the file": func(r *os.Root) error {
			return errors.Join(r.Remove("..data/ca.crt"), syscall.Mkfifo(r.Name()+"/..data/ca.crt", 0o600))
		},
		"a directory in it":              func(r *os.Root) error { return r.Mkdir("..data/certs/x", 0o700) },
		"the record names a certificate": nil,
		"the record is of another kind":  nil,
	} {
		t.Run(name, func(t *testing.T) {
			f := newTrustFixture(t)
			f.create()
			if change != nil {
				f.damage(change)
			} else {
				forged := f.spec
				record := map[string]any{"volumeID": forged.VolumeID, "target": forged.Target, "pod": forged.Pod, "attributes": forged.Attributes,
					"issued": time.Now().Add(-2 * time.Hour), "notAfter": time.Now().Add(-time.Hour), "serial": "4711"}
				if name == "the record is of another kind" {
					delete(record, "attributes")
				}
				f.forgeRecord(record)
			}
			v, err := volume.Adopt(t.Context(), f.node, f.spec)
			must(t, err)
			v.Keep(t.Context())
			f.expectTrust("after the repair", f.signer.ca.Root)
			if s := v.State(); s.Err != nil || !s.Validity.NotAfter.IsZero() || v.Serial() != "" {
				t.Errorf("state %+v, serial %q", s, v.Serial())
			}
			set, _ := f.set("ca.crt")
			again, err := volume.Adopt(t.Context(), f.node, f.spec)
			must(t, err)
			again.Keep(t.Context())
			if same, _ := f.set("ca.crt"); same != set {
				t.Error("it was written once more")
			}
		})
	}
}

// A volume that has changed its kind gets the files of the other one.
func TestTrustOnlyAndBack(t *testing.T) {
	f := newFixture(t)
	f.follow()
	f.create()
	f.spec.Attributes = map[string]string{"trust-only": "true", "ca-directory": "certs"}
	v, err := volume.Adopt(t.Context(), f.node, f.spec)
	must(t, err)
	v.Keep(t.Context())
	f.expectTrust("without a certificate", f.signer.ca.Root)
	if s := v.State(); !s.Validity.NotAfter.IsZero() || s.Err != nil {
		t.Errorf("%+v", s)
	}
	f.spec.Attributes = nil
	v, err = volume.Adopt(t.Context(), f.node, f.spec)
	must(t, err)
	v.Keep(t.Context())
	t.Cleanup(v.Stop)
	if next := v.State().Next; time.Until(next) > 0 {
		t.Errorf("the first certificate is due in %s", time.Until(next))
	}
	must(t, v.Renew(t.Context()))
	f.check()
}

// Without roots, a publish waits for them, and fails with the reason. Nothing is mounted then.
func TestTrustOnlyWithoutRoots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.spec.Attributes = map[string]string{"trust-only": "true"}
		began := time.Now()
		_, err := volume.Create(t.Context(), f.node, f.spec, issuer.Token{})
		if issuer.OutcomeOf(err) != issuer.Unavailable || !strings.Contains(err.Error(), "issuer default: wait for the roots of the CA: ") || time.Since(began) > time.Minute {
			t.Errorf("%v after %s", err, time.Since(began))
		}
		if _, err := os.Stat(f.path); !os.IsNotExist(err) {
			t.Errorf("the target is left: %v", err)
		}
		go func() {
			time.Sleep(10 * time.Second)
			f.follow()
		}()
		f.create()
		if _, data := f.set("ca.crt"); !bytes.Equal(data, encoded(f.signer.ca.Root)) {
			t.Errorf("%s", data)
		}
		now := time.Now()
		f.answer(rootUntil(t, now.Add(-time.Hour), now.Add(-time.Minute)))
		f.spec.VolumeID, f.spec.Target = "csi-2", "other"
		if _, err := volume.Create(t.Context(), f.node, f.spec, issuer.Token{}); err == nil || !strings.Contains(err.Error(), "all roots of the CA have expired") {
			t.Errorf("with an expired root: %v", err)
		}
	})
}

// A volume grows as its roots do, and no more than up to a limit. A usual one keeps its size.
func TestVolumesGrow(t *testing.T) {
	f := newTrustFixture(t)
	v := f.create()
	v.Keep(t.Context())
	first := f.size()
	if first != (sizes{1 << 20, 128}) {
		t.Errorf("a usual volume has %+v", first)
	}
	if extra := max(v.ExtraMemory(), volume.ExtraMemory(f.node, f.spec)); extra != 0 {
		t.Errorf("a usual volume takes %d bytes more than a usual one", extra)
	}
	now := time.Now()
	roots := []*x509.Certificate{f.signer.ca.Root}
	for len(roots) < 600 {
		roots = append(roots, rootUntil(t, now.Add(time.Duration(len(roots))*time.Second), now.Add(time.Hour)))
	}
	f.answer(roots...)
	for range 3 {
		if changed, err := v.ReplaceRoots(); !changed || err != nil {
			t.Fatalf("changed %t, %v", changed, err)
		}
		f.expectTrust("many roots", roots...)
		roots = roots[:len(roots)-1]
		f.answer(roots...)
	}
	grown := f.size()
	if grown.bytes < 3*600*4096 || grown.inodes < 3*600 {
		t.Errorf("three sets do not fit into %+v", grown)
	}
	var usage unix.Statfs_t
	must(t, unix.Statfs(f.path, &usage))
	used := int64(usage.Blocks-usage.Bfree) * usage.Bsize
	if extra, estimate := v.ExtraMemory(), volume.ExtraMemory(f.node, f.spec); extra < used || extra > 2*used || estimate < extra*9/10 || estimate > extra*11/10 {
		t.Errorf("two sets take %d bytes; known are %d, and estimated are %d", used, extra, estimate)
	}
	if line := f.mountLine(); !strings.Contains(line, " ro,") || !strings.Contains(line, "mode=755") {
		t.Errorf("the mount has lost options: %s", line)
	}
	for len(roots) < 2500 {
		roots = append(roots, rootUntil(t, now.Add(time.Duration(len(roots))*time.Second), now.Add(time.Hour)))
	}
	f.answer(roots...)
	if _, err := v.ReplaceRoots(); err == nil || !strings.Contains(err.Error(), "encode certs: there are 2500 roots, and a directory has room for 2048") {
		t.Errorf("too many roots: %v", err)
	}
	if s := v.State(); s.Err == nil || s.Failures != 1 {
		t.Errorf("state %+v", s)
	}
	if f.size() != grown {
		t.Errorf("it grew to %+v", f.size())
	}
	f.answer(roots[:3]...)
	if _, err := v.ReplaceRoots(); err != nil {
		t.Error(err)
	}
	if s := v.State(); s.Err != nil || s.Failures != 0 {
		t.Errorf("state %+v", s)
	}
}

type sizes struct{ bytes, inodes int64 }

func (f *fixture) size() sizes {
	f.t.Helper()
	var s unix.Statfs_t
	must(f.t, unix.Statfs(f.path, &s))
	return sizes{int64(s.Blocks) * s.Bsize, int64(s.Files)}
}

func (f *fixture) mountLine() string {
	f.t.Helper()
	table, err := os.ReadFile("/proc/self/mountinfo")
	must(f.t, err)
	for line := range strings.SplitSeq(string(table), "\n") {
		if strings.Contains(line, f.path) {
			return line
		}
	}
	return ""
}

func (f *fixture) forgeRecord(record any) {
	f.t.Helper()
	target, err := f.node.Targets.Open("mount")
	must(f.t, err)
	defer target.Close()
	tree, err := tmpfs.Clone(target)
	must(f.t, err)
	defer tree.Close()
	must(f.t, tree.SetRecord(jsonOf(f.t, record)))
}

func jsonOf(t *testing.T, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	must(t, err)
	return data
}

// The trust stores of a volume with trust only follow the roots with the same password, also
// after a restart, and are repaired.
func TestTrustOnlyStores(t *testing.T) {
	f := newTrustFixture(t)
	f.spec.Attributes = map[string]string{"trust-only": "true", "jks-truststore-file": "roots.jks", "pkcs12-truststore-file": "roots.p12"}
	files := attributes.Files{CA: "ca.crt", JKSTrustStore: "roots.jks", PKCS12TrustStore: "roots.p12", KeyStorePassword: "keystore-password"}
	check := func(what string, roots ...*x509.Certificate) (password string) {
		t.Helper()
		root, err := os.OpenRoot(f.path)
		must(t, err)
		defer root.Close()
		got, err := volume.CheckTrust(root, files)
		if err != nil || !slices.EqualFunc(got, roots, (*x509.Certificate).Equal) {
			t.Errorf("%s: %d roots instead of %d: %v", what, len(got), len(roots), err)
		}
		if err := keystores.Check(root, files, "", ""); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		text, err := root.ReadFile(files.KeyStorePassword)
		must(t, err)
		return string(text)
	}
	own := f.signer.ca.Root
	v := f.create()
	v.Keep(t.Context())
	password := check("a new volume", own)
	a, b := rootUntil(t, time.Now().Add(time.Minute), time.Now().Add(time.Hour)), rootUntil(t, time.Now().Add(2*time.Minute), time.Now().Add(time.Hour))
	f.answer(own, a)
	if changed, err := v.ReplaceRoots(); !changed || err != nil {
		t.Errorf("changed %t, %v", changed, err)
	}
	if check("with another root", own, a) != password {
		t.Error("another password")
	}
	f.answer(own, b)
	found, err := volume.Find(f.node, "mount")
	must(t, err)
	found.Keep(t.Context())
	if check("found", own, b) != password {
		t.Error("another password after a restart")
	}
	f.damage(func(r *os.Root) error { return r.WriteFile("..data/roots.jks", nil, 0o600) })
	adopted, err := volume.Adopt(t.Context(), f.node, f.spec)
	must(t, err)
	adopted.Keep(t.Context())
	if check("adopted", own, b) != password {
		t.Error("another password after the repair")
	}
}

// After a restart, a volume with trust only whose password is that of a Secret is intact: it
// has no file for the password.
func TestTrustOnlyWithTheSecretsPasswordIsNotDamaged(t *testing.T) {
	f := newTrustFixture(t)
	f.spec.Attributes = map[string]string{"trust-only": "true", "pkcs12-truststore-file": "roots.p12"}
	f.give(given)
	f.create()
	before, _ := f.set("roots.p12")
	v, damaged := f.adopt()
	v.Keep(t.Context())
	if after, _ := f.set("roots.p12"); after != before || damaged {
		t.Errorf("damaged: %t; written again: %t", damaged, after != before)
	}
}
