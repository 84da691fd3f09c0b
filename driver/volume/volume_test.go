package volume_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.step.sm/crypto/minica"
	"golang.org/x/sys/unix"

	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/driver/payload"
	"github.com/flexstack/step-csi/driver/tmpfs"
	"github.com/flexstack/step-csi/driver/volume"
	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
	"github.com/flexstack/step-csi/issuer/schedule"
	"github.com/flexstack/step-csi/issuer/trust"
	"github.com/flexstack/step-csi/test/sandbox"
)

func TestMain(m *testing.M) {
	sandbox.Enter()
	os.Exit(m.Run())
}

// pausingSigner is a CA whose answers the test can hold back.
type pausingSigner struct {
	ca    *minica.CA
	store *trust.Store
	roots atomic.Pointer[[]*x509.Certificate]
	// paused runs after the CA has signed and before its answer arrives.
	paused func()
}

func (*pausingSigner) Connect(context.Context) error { return nil }

func (s *pausingSigner) Sign(_ context.Context, req issuer.SigningRequest) ([]*x509.Certificate, error) {
	leaf, err := s.ca.Sign(&x509.Certificate{
		Subject: req.CSR.Subject, DNSNames: req.CSR.DNSNames, URIs: req.CSR.URIs, PublicKey: req.CSR.PublicKey,
		NotBefore: time.Now().Add(-time.Second), NotAfter: time.Now().Add(req.Request.Duration), KeyUsage: x509.KeyUsageDigitalSignature,
	})
	return []*x509.Certificate{leaf, s.ca.Intermediate}, err
}

// Roots returns the roots from the time of the answer to Sign, like a registration
// authority, and then pauses.
func (s *pausingSigner) Roots(context.Context) (issuer.Roots, error) {
	answered := issuer.Roots{Own: *s.roots.Load(), Asked: time.Now()}
	if s.paused != nil {
		s.paused()
	}
	return answered, nil
}

func (s *pausingSigner) RefreshRoots(context.Context) (issuer.Roots, error) {
	return issuer.Roots{Own: *s.roots.Load(), Asked: time.Now()}, nil
}

func (*pausingSigner) Revoke(context.Context, issuer.Revocation) error { return nil }

func (s *pausingSigner) Trust() *trust.Store { return s.store }

// fixture is a node with one issuer and one volume.
type fixture struct {
	t      *testing.T
	node   *volume.Node
	signer *pausingSigner
	spec   volume.Spec
	path   string // the target path
	// revoked receives the serial numbers of unused certificates.
	revoked chan string
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	ca, err := minica.New()
	must(t, err)
	s := &pausingSigner{ca: ca, store: trust.NewStore("https://ca", trust.Pins{})}
	s.roots.Store(&[]*x509.Certificate{ca.Root})
	i, err := issuer.New(issuer.Config{Signer: s, Policy: func(context.Context, issuer.Pod, issuer.Request) error { return nil }})
	must(t, err)
	directory := t.TempDir()
	targets, err := tmpfs.OpenDirectory(directory)
	must(t, err)
	t.Cleanup(func() { targets.Close() })
	f := &fixture{t: t, signer: s, path: filepath.Join(directory, "mount"), revoked: make(chan string, 10)}
	f.node = &volume.Node{
		DriverName: "csi.example",
		Targets:    targets,
		Attributes: attributes.Config{
			ClusterDomain: names.Must(names.ParseClusterDomain("cluster.local")),
			TrustDomain:   names.Must(names.ParseTrustDomain("cluster.local")),
			Issuers:       map[string]issuer.Lifetimes{"default": {Default: time.Hour, Min: time.Second, Max: time.Hour}},
		},
		Issuers: map[string]*volume.Issuer{"default": {
			Issuer: i, Name: "default", Scheduler: schedule.New(), Observe: func(schedule.Priority, time.Time, error) {},
		}},
		Background: func(f func(context.Context)) { go f(context.Background()) },
		Revoke:     func(_ context.Context, _ *volume.Volume, r issuer.Revocation) { f.revoked <- r.Serial },
	}
	f.spec = volume.Spec{
		VolumeID: "csi-1", Target: "mount",
		Pod: issuer.Pod{Namespace: "shop", Name: "web-0", UID: "uid-1", ServiceAccount: "web", Node: "node-1"},
	}
	t.Cleanup(func() { _ = unix.Unmount(f.path, unix.MNT_DETACH) })
	return f
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (f *fixture) create() *volume.Volume {
	f.t.Helper()
	v, err := volume.Create(f.t.Context(), f.node, f.spec, issuer.Token{})
	must(f.t, err)
	return v
}

// check runs volume.Check and returns the contents of the volume.
func (f *fixture) check() *volume.Contents {
	f.t.Helper()
	root, err := os.OpenRoot(f.path)
	must(f.t, err)
	defer root.Close()
	contents, err := volume.Check(root, usual)
	must(f.t, err)
	return contents
}

var usual = attributes.Files{Certificate: "tls.crt", PrivateKey: "tls.key", CA: "ca.crt"}

// addRoot adds a root to the CA and makes the issuer learn it.
func (f *fixture) addRoot() {
	f.t.Helper()
	other, err := minica.New()
	must(f.t, err)
	roots := append([]*x509.Certificate{other.Root}, *f.signer.roots.Load()...)
	f.signer.roots.Store(&roots)
	f.follow()
}

// follow makes the issuer request the roots once.
func (f *fixture) follow() {
	ctx, stop := context.WithCancel(f.t.Context())
	f.node.Issuers["default"].FollowRoots(ctx, time.Hour, func(issuer.Roots, error) { stop() })
}

// The roots change while a renewal waits for its answer. The renewal must not write
// the older roots of its answer.
func TestRenewalDoesNotWriteOlderRoots(t *testing.T) {
	f := newFixture(t)
	v := f.create()
	f.signer.paused = func() {
		f.signer.paused = nil
		f.addRoot()
		if changed, err := v.ReplaceRoots(); err != nil || !changed {
			t.Errorf("ReplaceRoots: changed %v, error %v", changed, err)
		}
	}
	first := f.check().Leaf
	must(t, v.Renew(t.Context()))
	if contents := f.check(); len(contents.Roots) != 2 || contents.Leaf.Equal(first) {
		t.Errorf("%d roots, want 2, with a new certificate", len(contents.Roots))
	}
	if changed, err := v.ReplaceRoots(); err != nil || changed {
		t.Errorf("the second ReplaceRoots: changed %v, error %v", changed, err)
	}
}

// The roots change between the CA's answer to a publish and the mount, or between
// the mount and the registration. The volume gets the new roots in both cases.
func TestPublishDoesNotMissNewRoots(t *testing.T) {
	f := newFixture(t)
	f.signer.paused = func() {
		f.signer.paused = nil
		f.addRoot()
	}
	v := f.create()
	if contents := f.check(); len(contents.Roots) != 2 {
		t.Errorf("%d roots after the mount, want 2", len(contents.Roots))
	}
	f.addRoot() // after the mount, before the registration
	v.Keep(t.Context())
	if contents := f.check(); len(contents.Roots) != 3 {
		t.Errorf("%d roots after the registration, want 3", len(contents.Roots))
	}
}

// An earlier version kept the roots that verify the CA's server in another extended
// attribute of the mount, which a container with CAP_SYS_ADMIN can forge. It is ignored.
func TestRootsInTheMountAreIgnored(t *testing.T) {
	f := newFixture(t)
	f.create()
	foreign, err := minica.New()
	must(t, err)
	learned := trust.NewStore("https://ca", trust.Pins{})
	learned.Follow([]*x509.Certificate{foreign.Root}, time.Now())
	forged, err := json.Marshal(learned.State())
	must(t, err)
	target, err := f.node.Targets.Open("mount")
	must(t, err)
	defer target.Close()
	tree, err := tmpfs.Clone(target)
	must(t, err)
	defer tree.Close()
	root, err := tree.Root()
	must(t, err)
	defer root.Close()
	directory, err := root.Open(".")
	must(t, err)
	defer directory.Close()
	must(t, unix.Fsetxattr(int(directory.Fd()), "trusted.step-csi.trust", forged, 0))
	before := f.check().Leaf
	v, err := volume.Adopt(t.Context(), f.node, f.spec)
	must(t, err)
	if err := v.Unmanaged(); err != nil || len(f.signer.store.Trusted()) > 0 {
		t.Errorf("adopted: %v; %d trusted roots, want none", err, len(f.signer.store.Trusted()))
	}
	must(t, v.Renew(t.Context()))
	if f.check().Leaf.Equal(before) {
		t.Error("Renew did not replace the certificate")
	}
}

// The old file names cannot be removed after a change of the attributes. The new
// certificate is mounted all the same, so the record and a later revocation must be
// about it.
func TestFailedCleanUpKeepsTheRecordRight(t *testing.T) {
	f := newFixture(t)
	f.create()
	f.spec.Attributes = map[string]string{"certificate-file": "server.pem"}
	v, err := volume.Adopt(t.Context(), f.node, f.spec)
	must(t, err)
	// Removing the file fails, because a directory has its name.
	target, err := f.node.Targets.Open("mount")
	must(t, err)
	defer target.Close()
	tree, err := tmpfs.Clone(target)
	must(t, err)
	root, err := tree.Root()
	must(t, err)
	must(t, errors.Join(root.Remove("tls.crt"), root.MkdirAll("tls.crt/full", 0o700)))
	if err := v.Renew(t.Context()); !errors.Is(err, payload.ErrCleanUp) {
		t.Error(err)
	}
	contents, err := volume.Check(root, attributes.Files{Certificate: "server.pem", PrivateKey: "tls.key", CA: "ca.crt"})
	if contents == nil {
		t.Fatal(err)
	}
	must(t, errors.Join(root.Close(), tree.Close()))
	data, err := tmpfs.Record(target)
	must(t, err)
	record, err := volume.ParseRecord(data)
	must(t, err)
	if err := record.Fits(contents); err != nil || !v.State().Validity.NotAfter.Equal(contents.Leaf.NotAfter) {
		t.Errorf("%v, state %+v", err, v.State())
	}
}

// A volume under another mount counts as gone, until it is adopted again.
func TestHiddenVolume(t *testing.T) {
	f := newFixture(t)
	v := f.create()
	must(t, unix.Mount("foreign", f.path, "tmpfs", 0, ""))
	if err := v.Renew(t.Context()); !errors.Is(err, volume.ErrGone) {
		t.Errorf("Renew under a foreign mount: %v", err)
	}
	if _, err := v.Close(); err == nil {
		t.Error("Close succeeded under a foreign mount")
	}
	if _, err := volume.Adopt(t.Context(), f.node, f.spec); !errors.Is(err, tmpfs.ErrForeign) {
		t.Errorf("Adopt under a foreign mount: %v", err)
	}
	must(t, unix.Unmount(f.path, 0))
	again, err := volume.Adopt(t.Context(), f.node, f.spec)
	must(t, err)
	before := f.check().Leaf
	must(t, again.Renew(t.Context()))
	if f.check().Leaf.Equal(before) {
		t.Error("Renew did not replace the certificate")
	}
	if revocation, err := again.Close(); err != nil || revocation != nil {
		t.Errorf("Close: revocation %v, error %v", revocation, err)
	}
	if _, err := os.ReadFile(filepath.Join(f.path, "tls.crt")); err == nil {
		t.Error("still mounted")
	}
}

// A volume of an earlier process follows the roots, and is not renewed. If the kubelet does
// not publish it, the volume counts as unmanaged.
func TestFoundVolume(t *testing.T) {
	f := newFixture(t)
	f.create()
	leaf := f.check().Leaf
	synctest.Test(t, func(t *testing.T) {
		v, err := volume.Find(f.node, "mount")
		must(t, err)
		v.Keep(t.Context())
		if err := v.Renew(t.Context()); !errors.Is(err, volume.ErrUnconfirmed) {
			t.Errorf("Renew: %v", err)
		}
		if state := v.State(); state.Err != nil || !state.Validity.NotAfter.Equal(leaf.NotAfter) || !state.Next.Equal(state.Validity.Due()) {
			t.Errorf("state %+v", state)
		}
		time.Sleep(volume.ConfirmationLimit - time.Second)
		if err := v.Unmanaged(); err != nil {
			t.Errorf("unmanaged before the limit: %v", err)
		}
		time.Sleep(time.Second)
		if err := v.Unmanaged(); !errors.Is(err, volume.ErrUnconfirmed) || !errors.Is(v.State().Err, volume.ErrUnconfirmed) {
			t.Errorf("after the limit: %v, %v", err, v.State().Err)
		}
	})
	v, err := volume.Find(f.node, "mount")
	must(t, err)
	f.addRoot()
	if changed, err := v.ReplaceRoots(); err != nil || !changed {
		t.Errorf("ReplaceRoots: changed %v, error %v", changed, err)
	}
	if contents := f.check(); len(contents.Roots) != 2 || !contents.Leaf.Equal(leaf) {
		t.Errorf("%d roots, want 2, with the same certificate", len(contents.Roots))
	}
}

// The kernel gets the SELinux context of the kubelet's request. It rejects this one, with
// and without SELinux, and nothing is mounted.
func TestContextReachesTheKernel(t *testing.T) {
	f := newFixture(t)
	spec := f.spec
	spec.SELinuxContext = "no:such:context"
	_, err := volume.Create(t.Context(), f.node, spec, issuer.Token{})
	if !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), `context="no:such:context"`) {
		t.Errorf("create: %v", err)
	}
	if _, err := os.Lstat(f.path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the target: %v", err)
	}
}

// A certificate that was issued and cannot be used is revoked.
func TestUnusableCertificateIsRevoked(t *testing.T) {
	f := newFixture(t)
	f.spec.Attributes = map[string]string{"revoke-on-delete": "true"}
	f.signer.roots.Store(&[]*x509.Certificate{}) // the certificate has no chain to a root
	if _, err := volume.Create(t.Context(), f.node, f.spec, issuer.Token{}); issuer.OutcomeOf(err) != issuer.InvalidAnswer {
		t.Errorf("Create: %v", err)
	}
	select {
	case <-f.revoked:
	case <-time.After(time.Minute):
		t.Error("the certificate was not revoked")
	}
}

// Check detects every kind of damage to a volume.
func TestCheck(t *testing.T) {
	for name, test := range map[string]struct {
		damage func(root *os.Root) error
		want   string
	}{
		"nothing":         {func(*os.Root) error { return nil }, ""},
		"no link":         {func(r *os.Root) error { return r.Remove(payload.DataLink) }, payload.DataLink},
		"a plain file":    {replaced("tls.crt"), "tls.crt"},
		"no key":          {func(r *os.Root) error { return r.Remove("tls.key") }, "tls.key"},
		"no roots":        {rewritten("ca.crt", func(string) string { return "" }), "ca.crt: the file contains no certificate"},
		"rubbish":         {rewritten("tls.crt", func(string) string { return "x" }), "tls.crt"},
		"half a chain":    {rewritten("tls.crt", func(s string) string { return s[:strings.Index(s, "-----END")+26] }), "unknown authority"},
		"another key":     {rewritten("tls.key", func(string) string { return anotherKey }), "the key of another certificate"},
		"a huge RSA key":  {rewritten("ca.crt", func(s string) string { return s + hugeRSA(t) }), "an RSA key of 100000 bits"},
		"a writable view": {nil, "the mount is writable"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.create()
			target, err := f.node.Targets.Open("mount")
			must(t, err)
			defer target.Close()
			tree, err := tmpfs.Clone(target)
			must(t, err)
			defer tree.Close()
			writable, err := tree.Root()
			must(t, err)
			defer writable.Close()
			checked := writable
			if test.damage != nil {
				must(t, test.damage(writable))
				checked, err = tmpfs.Root(target)
				must(t, err)
				defer checked.Close()
			}
			_, err = volume.Check(checked, usual)
			if test.want == "" && err != nil || test.want != "" && !strings.Contains(fmt.Sprint(err), test.want) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// replaced replaces a link with a regular file.
func replaced(name string) func(*os.Root) error {
	return func(r *os.Root) error {
		data, err := r.ReadFile(name)
		return errors.Join(err, r.Remove(name), r.WriteFile(name, data, 0o444))
	}
}

// hugeRSA returns a certificate with a key that makes verification take seconds.
func hugeRSA(t *testing.T) string {
	t.Helper()
	key, err := issuer.ECDSAP256.Generate()
	must(t, err)
	n := new(big.Int).SetBit(big.NewInt(1), 99_999, 1)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &rsa.PublicKey{N: n, E: 65537}, key.Signer)
	must(t, err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func rewritten(name string, change func(string) string) func(*os.Root) error {
	return func(r *os.Root) error {
		data, err := r.ReadFile(name)
		name := payload.DataLink + "/" + name
		return errors.Join(err, r.Remove(name), r.WriteFile(name, []byte(change(string(data))), 0o444))
	}
}

// anotherKey is an Ed25519 key in PKCS #8.
const anotherKey = `-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC
-----END PRIVATE KEY-----
`

// The record of the largest attributes fits into the extended attribute, and the next
// process adopts the volume without a renewal.
func TestLargestRecord(t *testing.T) {
	f := newFixture(t)
	long := strings.Repeat("n", 63)
	f.spec.Pod.Namespace, f.spec.Pod.ServiceAccount = long, strings.Repeat(long+".", 3)+long[:61]
	f.spec.Pod.Name, f.spec.Pod.Node = f.spec.Pod.ServiceAccount, f.spec.Pod.ServiceAccount
	// JSON writes & as six bytes.
	f.spec.Attributes = attributes.Normalize(map[string]string{"uri-sans": "https://a/?" + strings.Repeat("&", 1350)})
	f.create()
	v, err := volume.Adopt(t.Context(), f.node, f.spec)
	must(t, err)
	if v.Unmanaged() != nil || !v.Same(f.spec) {
		t.Errorf("adopted as %+v, %v", v.Spec, v.Unmanaged())
	}
}
