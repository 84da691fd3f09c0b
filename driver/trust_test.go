package driver

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.step.sm/crypto/minica"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/textlogger"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/trust"
)

// learner is a signer of which only the trust is used.
type learner struct {
	issuer.Signer
	store *trust.Store
}

func (l learner) Trust() *trust.Store { return l.store }

// process is what one process of the node plugin has in memory about trust.
type process struct {
	*trustFile
	store   *trust.Store // of the issuer "default"
	issuers map[string]*issuerState
	log     bytes.Buffer
	ctx     context.Context
}

func newProcess(t *testing.T, directory string, pins trust.Pins) *process {
	t.Helper()
	p := &process{trustFile: newTrustFile(filepath.Join(directory, "csi.sock")), store: trust.NewStore("https://ca", pins)}
	i, err := issuer.New(issuer.Config{Signer: learner{store: p.store}, Policy: func(context.Context, issuer.Pod, issuer.Request) error { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	p.issuers = map[string]*issuerState{"default": newIssuerState("default", Issuer{Issuer: i}, newMetrics())}
	p.ctx = klog.NewContext(t.Context(), textlogger.NewLogger(textlogger.NewConfig(textlogger.Output(&p.log))))
	return p
}

func (p *process) trusts(root *x509.Certificate) bool {
	return trust.Same(p.store.Trusted(), []*x509.Certificate{root})
}

func newRoot(t *testing.T) *x509.Certificate {
	t.Helper()
	ca, err := minica.New()
	if err != nil {
		t.Fatal(err)
	}
	return ca.Root
}

// The next process trusts what this one has learned, although the configuration does not
// name it. With roots.pinned it does not.
func TestLearnedRootsAreRestored(t *testing.T) {
	directory, learned := t.TempDir(), newRoot(t)
	pins := trust.Pins{Fingerprints: []string{strings.Repeat("84a0", 16)}}
	first := newProcess(t, directory, pins)
	if err := os.WriteFile(first.temporary(), []byte("half a fi"), 0o666); err != nil { // of a killed process
		t.Fatal(err)
	}
	first.restore(first.ctx, first.issuers)
	if _, err := os.Stat(first.temporary()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file of the killed process is still there: %v", err)
	}
	if err := first.save(first.ctx, first.issuers); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(first.path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("there is a file before there are roots: %v", err)
	}
	first.store.Follow([]*x509.Certificate{learned}, time.Now())
	var written [2]os.FileInfo
	for n := range written {
		if err := first.save(first.ctx, first.issuers); err != nil {
			t.Fatal(err)
		}
		var err error
		if written[n], err = os.Stat(first.path); err != nil || written[n].Mode() != 0o600 {
			t.Fatalf("%v: %v", written[n], err)
		}
	}
	if !os.SameFile(written[0], written[1]) {
		t.Error("the file is written again although nothing has changed")
	}
	if entries, err := os.ReadDir(directory); err != nil || len(entries) != 1 {
		t.Errorf("%d files, %v", len(entries), err)
	}

	next := newProcess(t, directory, pins)
	next.restore(next.ctx, next.issuers)
	if !next.trusts(learned) || next.log.Len() > 0 {
		t.Errorf("the next process trusts %d roots; the log:\n%s", len(next.store.Trusted()), &next.log)
	}
	pins.Only = true
	pinned := newProcess(t, directory, pins)
	pinned.restore(pinned.ctx, pinned.issuers)
	if pinned.trusts(learned) || !strings.Contains(pinned.log.String(), "roots.pinned") {
		t.Errorf("with roots.pinned, the next process trusts the learned root; the log:\n%s", &pinned.log)
	}
}

// The same roots in another order do not change the file, also after a restart.
func TestTrustFileHasASetOfRoots(t *testing.T) {
	directory, a, b := t.TempDir(), newRoot(t), newRoot(t)
	p := newProcess(t, directory, trust.Pins{})
	p.store.Follow([]*x509.Certificate{a, b}, time.Now())
	if err := p.save(p.ctx, p.issuers); err != nil {
		t.Fatal(err)
	}
	written, err := os.Stat(p.path)
	if err != nil {
		t.Fatal(err)
	}
	for _, roots := range [][]*x509.Certificate{{b, a}, {a, b}, {b, a, b}} {
		p = newProcess(t, directory, trust.Pins{})
		p.restore(p.ctx, p.issuers)
		p.store.Follow(roots, time.Now())
		if err := p.save(p.ctx, p.issuers); err != nil {
			t.Fatal(err)
		}
		if now, err := os.Stat(p.path); err != nil || !os.SameFile(written, now) {
			t.Errorf("the file is written again although only the order has changed: %v", err)
		}
	}
}

// Whatever is in the place of the file, the process starts with the configured roots,
// says why, and saves what it learns.
func TestDamagedTrustFile(t *testing.T) {
	configured, learned := newRoot(t), newRoot(t)
	pins := trust.Pins{Roots: []*x509.Certificate{configured}}
	directory := t.TempDir()
	first := newProcess(t, directory, pins)
	first.store.Follow([]*x509.Certificate{configured, learned}, time.Now())
	if err := first.save(first.ctx, first.issuers); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(first.path)
	if err != nil {
		t.Fatal(err)
	}
	changed := func(change func(s *trust.State)) []byte {
		var contents trustContents
		if err := json.Unmarshal(whole, &contents); err != nil {
			t.Fatal(err)
		}
		state := contents.Issuers["default"]
		change(&state)
		contents.Issuers["default"] = state
		data, err := json.Marshal(contents)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	content := func(data []byte) func(path string) error {
		return func(path string) error { return os.WriteFile(path, data, 0o600) }
	}
	elsewhere := filepath.Join(t.TempDir(), "elsewhere")
	if err := os.WriteFile(elsewhere, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		put  func(path string) error
		says string
	}{
		"empty":           {content(nil), "unexpected end"},
		"half":            {content(whole[:len(whole)/2]), "unexpected end"},
		"two":             {content(append(whole[:len(whole):len(whole)], whole...)), "after top-level value"},
		"other JSON":      {content([]byte(`{"issuers": ["default"]}`)), "cannot unmarshal"},
		"huge":            {content(append(whole[:len(whole):len(whole)], bytes.Repeat([]byte(" "), maxTrustFile)...)), "larger than"},
		"no certificate":  {content(changed(func(s *trust.State) { s.Roots[0] = []byte("x") })), "x509"},
		"another anchor":  {content(changed(func(s *trust.State) { s.Anchor = "0" })), "another url, fingerprint or caBundleFile"},
		"from the future": {content(changed(func(s *trust.State) { s.Since = time.Now().Add(time.Hour) })), "from the future"},
		"a directory":     {func(path string) error { return os.Mkdir(path, 0o700) }, "not a regular file"},
		"a FIFO":          {func(path string) error { return unix.Mkfifo(path, 0o600) }, "not a regular file"},
		"a link":          {func(path string) error { return os.Symlink(elsewhere, path) }, "symbolic links"},
	} {
		t.Run(name, func(t *testing.T) {
			next := newProcess(t, t.TempDir(), pins)
			if err := test.put(next.path); err != nil {
				t.Fatal(err)
			}
			next.restore(next.ctx, next.issuers)
			if !next.trusts(configured) || !strings.Contains(next.log.String(), test.says) {
				t.Errorf("the process trusts %d roots, want the configured one, and a log with %q:\n%s", len(next.store.Trusted()), test.says, &next.log)
			}
			next.store.Follow([]*x509.Certificate{configured, learned}, time.Now())
			err := next.save(next.ctx, next.issuers)
			if name == "a directory" {
				if err == nil {
					t.Error("the file was saved over a directory")
				}
				return
			}
			last := newProcess(t, filepath.Dir(next.path), pins)
			last.restore(last.ctx, last.issuers)
			if err != nil || len(last.store.Trusted()) != 2 {
				t.Errorf("the next process trusts %d roots: %v", len(last.store.Trusted()), err)
			}
		})
	}
}

// A directory that cannot be written to, like a full or read-only disk, is logged once.
// The file is written when that is possible again.
func TestTrustFileCannotBeWritten(t *testing.T) {
	directory := filepath.Join(t.TempDir(), "missing")
	p := newProcess(t, directory, trust.Pins{})
	ctx, stop := context.WithCancel(p.ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.keep(ctx, p.issuers)
	}()
	p.store.Follow([]*x509.Certificate{newRoot(t)}, time.Now())
	for range 5 {
		p.changed <- struct{}{}
	}
	p.changed <- struct{}{} // keep has finished with at least four of them
	if err := os.Mkdir(directory, 0o700); err != nil {
		t.Fatal(err)
	}
	p.changed <- struct{}{}
	p.changed <- struct{}{}
	p.changed <- struct{}{} // keep has begun with one after the directory was made
	stop()
	<-done
	if logged := strings.Count(p.log.String(), "Cannot save the trusted roots"); logged != 1 {
		t.Errorf("logged %d times:\n%s", logged, &p.log)
	}
	if _, err := os.Stat(p.path); err != nil {
		t.Error(err)
	}
}
