package integration

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.step.sm/crypto/pemutil"
)

// files are the contents of a volume.
type files struct {
	chain []*x509.Certificate
	key   crypto.Signer
	roots *x509.CertPool
}

// read reads the volume at the path and checks that its three files belong
// together.
func read(t testing.TB, path string) files {
	t.Helper()
	// One set: as a program does that follows ..data once.
	set, err := filepath.EvalSymlinks(filepath.Join(path, "..data"))
	must(t, err)
	pair, err := tls.LoadX509KeyPair(filepath.Join(set, "tls.crt"), filepath.Join(set, "tls.key"))
	must(t, err)
	roots, err := os.ReadFile(filepath.Join(set, "ca.crt"))
	must(t, err)
	f := files{key: pair.PrivateKey.(crypto.Signer), roots: x509.NewCertPool()}
	if !f.roots.AppendCertsFromPEM(roots) {
		t.Fatal("no root in ca.crt")
	}
	for _, der := range pair.Certificate {
		certificate, err := x509.ParseCertificate(der)
		must(t, err)
		f.chain = append(f.chain, certificate)
	}
	intermediates := x509.NewCertPool()
	for _, c := range f.chain[1:] {
		intermediates.AddCert(c)
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		_, err = f.chain[0].Verify(x509.VerifyOptions{Roots: f.roots, Intermediates: intermediates, KeyUsages: []x509.ExtKeyUsage{usage}})
		must(t, err)
	}
	return f
}

func (f files) leaf() *x509.Certificate { return f.chain[0] }

func TestPublishReadUnpublish(t *testing.T) {
	n := newNode(t, startCA(t))
	p := pod{name: "web-0", attributes: map[string]string{"service-names": "web", "dns-names": "${POD_NAME}.web.shop.svc.cluster.local"}}
	n.publish(p)
	target := n.target(p)
	leaf := read(t, target).leaf()
	names := []string{"web-0.web.shop.svc.cluster.local", "web.shop", "web.shop.svc", "web.shop.svc.cluster.local"}
	if !slices.Equal(leaf.DNSNames, names) || leaf.Subject.CommonName != names[0] {
		t.Errorf("names %q, common name %q", leaf.DNSNames, leaf.Subject.CommonName)
	}
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != "spiffe://cluster.local/ns/shop/sa/web" {
		t.Errorf("URIs %v", leaf.URIs)
	}
	verifyWithOpenSSL(t, target, "web.shop.svc")
	if err := os.WriteFile(filepath.Join(target, "x"), nil, 0o600); !errors.Is(err, syscall.EROFS) {
		t.Errorf("writing into it: %v", err)
	}
	n.unpublish(p)
	if _, err := os.Stat(target); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the target is still there: %v", err)
	}
	if m := n.mounts(); len(m) > 0 {
		t.Errorf("mounted: %q", m)
	}
	n.unpublish(p) // a second time
}

// verifyWithOpenSSL is a second opinion.
func verifyWithOpenSSL(t *testing.T, path, host string) {
	t.Helper()
	for _, purpose := range []string{"sslserver", "sslclient"} {
		out, err := exec.Command("openssl", "verify", "-x509_strict", "-purpose", purpose, "-verify_hostname", host,
			"-CAfile", path+"/ca.crt", "-untrusted", path+"/tls.crt", path+"/tls.crt").CombinedOutput()
		if err != nil {
			t.Errorf("openssl: %v\n%s", err, out)
		}
	}
	key, err1 := exec.Command("openssl", "pkey", "-in", path+"/tls.key", "-pubout").Output()
	certificate, err2 := exec.Command("openssl", "x509", "-in", path+"/tls.crt", "-noout", "-pubkey").Output()
	if err := errors.Join(err1, err2); err != nil || string(key) != string(certificate) {
		t.Errorf("openssl: key and certificate differ: %v", err)
	}
}

func TestModesAndGroups(t *testing.T) {
	n := newNode(t, startCA(t))
	for _, test := range []struct {
		pod  pod
		mode fs.FileMode
		gid  uint32
	}{
		{pod{name: "plain-0"}, 0o444, 0},
		{pod{name: "group-0", group: "2000"}, 0o440, 2000},
		{pod{name: "own-0", group: "2000", attributes: map[string]string{"fs-group": "3000", "file-mode": "0400"}}, 0o400, 3000},
	} {
		n.publish(test.pod)
		for _, name := range []string{"tls.crt", "tls.key", "ca.crt"} {
			info, err := os.Stat(filepath.Join(n.target(test.pod), name))
			must(t, err)
			owner := info.Sys().(*syscall.Stat_t)
			if info.Mode() != test.mode || owner.Uid != 0 || owner.Gid != test.gid {
				t.Errorf("%s of %s: %v %d:%d", name, test.pod.name, info.Mode(), owner.Uid, owner.Gid)
			}
		}
		n.unpublish(test.pod)
	}
}

// A process without privileges reads its key: with the group, and where there
// is none.
func TestUnprivilegedReaders(t *testing.T) {
	n := newNode(t, startCA(t))
	must(t, exposed(n.kubeletDir))
	for _, test := range []struct {
		pod   pod
		group uint32
		want  bool
	}{
		{pod{name: "plain-1"}, 65534, true},
		{pod{name: "group-1", group: "2000"}, 2000, true},
		{pod{name: "group-2", group: "2000"}, 2001, false},
	} {
		n.publish(test.pod)
		cat := exec.Command("cat", filepath.Join(n.target(test.pod), "tls.key"))
		cat.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: test.group}}
		out, err := cat.CombinedOutput()
		if got := err == nil; got != test.want {
			t.Errorf("%s as group %d: %v %s", test.pod.name, test.group, err, out)
		}
		n.unpublish(test.pod)
	}
}

// exposed lets everybody reach a test's directory, as they can a pod's volumes
// from inside the pod.
func exposed(path string) error {
	for ; path != os.TempDir() && path != "/"; path = filepath.Dir(path) {
		if err := os.Chmod(path, 0o755); err != nil {
			return err
		}
	}
	return nil
}

func TestKeysAndFileNames(t *testing.T) {
	t.Parallel()
	n := newNode(t, startCA(t))
	for _, test := range []struct{ keyType, encoding, block string }{
		{"ecdsa-p384", "sec1", "EC PRIVATE KEY"},
		{"rsa-2048", "pkcs1", "RSA PRIVATE KEY"},
		{"rsa-2048", "pkcs8", "PRIVATE KEY"},
		{"ed25519", "pkcs8", "PRIVATE KEY"},
	} {
		p := pod{name: "key-0", attributes: map[string]string{
			"key-type": test.keyType, "key-encoding": test.encoding,
			"certificate-file": "server.pem", "privatekey-file": "server-key.pem", "ca-file": "roots.pem",
		}}
		n.publish(p)
		_, err := tls.LoadX509KeyPair(n.target(p)+"/server.pem", n.target(p)+"/server-key.pem")
		must(t, err)
		data, err := os.ReadFile(n.target(p) + "/server-key.pem")
		must(t, err)
		if block, _ := pem.Decode(data); block.Type != test.block {
			t.Errorf("%v: %s", test, block.Type)
		}
		if _, err := pemutil.ReadCertificate(n.target(p) + "/roots.pem"); err != nil {
			t.Error(err)
		}
		n.unpublish(p)
	}
}

func TestRotation(t *testing.T) {
	t.Parallel()
	n := newNode(t, startCA(t))
	for _, reuse := range []string{"false", "true"} {
		p := pod{name: "short-" + reuse, attributes: map[string]string{"duration": "8s", "reuse-private-key": reuse}}
		n.publish(p)
		first := read(t, n.target(p))
		eventually(t, 8*time.Second, "another certificate", func() bool {
			return !read(t, n.target(p)).leaf().Equal(first.leaf())
		})
		second := read(t, n.target(p))
		same := first.key.(interface{ Equal(crypto.PrivateKey) bool }).Equal(second.key)
		if same != (reuse == "true") {
			t.Errorf("reuse-private-key %s: the same key: %v", reuse, same)
		}
		if time.Now().After(first.leaf().NotAfter) {
			t.Error("too late")
		}
		n.unpublish(p)
	}
}

// Killed, and started again, the plugin finds what is mounted and goes on.
func TestRestartByKill(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	n := newNode(t, ca)
	short := pod{name: "short-0", attributes: map[string]string{"duration": "12s"}}
	long := pod{name: "long-0"}
	n.publish(short)
	n.publish(long)
	first, firstLong := read(t, n.target(short)), read(t, n.target(long))
	n.kill()
	read(t, n.target(short)) // still there
	n.start()
	if signs := ca.Signs(); signs != 2 {
		t.Errorf("%d signs after the restart", signs)
	}
	eventually(t, 12*time.Second, "a renewal after the restart", func() bool {
		return !read(t, n.target(short)).leaf().Equal(first.leaf())
	})
	if time.Now().After(first.leaf().NotAfter) {
		t.Error("too late")
	}
	if !read(t, n.target(long)).leaf().Equal(firstLong.leaf()) {
		t.Error("what was not due was renewed")
	}
	n.publish(long) // as the kubelet does, again and again
	if !read(t, n.target(long)).leaf().Equal(firstLong.leaf()) {
		t.Error("the republish renewed")
	}
	// A pod that goes while the plugin is down.
	n.kill()
	n.start()
	n.unpublish(short)
	n.unpublish(long)
}

func TestGracefulStopLeavesMountsAlone(t *testing.T) {
	n := newNode(t, startCA(t))
	p := pod{name: "web-0"}
	n.publish(p)
	n.stop()
	read(t, n.target(p))
	for _, socket := range []string{n.socket(), filepath.Join(n.kubeletDir, "plugins_registry", driverName+"-reg.sock")} {
		if _, err := os.Lstat(socket); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there", socket)
		}
	}
	n.start()
	n.unpublish(p)
}

// The real step-ca, as its own process from its own module.
func TestRealStepCAProcess(t *testing.T) {
	n := newNode(t, startRealCA(t))
	p := pod{name: "web-0", attributes: map[string]string{"service-names": "web", "duration": "5m"}}
	n.publish(p)
	leaf := read(t, n.target(p)).leaf()
	if !strings.Contains(leaf.Issuer.CommonName, "Intermediate") {
		t.Errorf("issued by %s", leaf.Issuer)
	}
	n.unpublish(p)
}
