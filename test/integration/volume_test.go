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

	"github.com/flexstack/step-csi/test/node"
)

// files is the parsed content of a volume.
type files struct {
	chain []*x509.Certificate
	key   crypto.Signer
	roots *x509.CertPool
}

// inOneSet calls use with the directory of the files that are in use, and again if that set was
// replaced and removed while use read it: two renewals can follow one another.
func inOneSet(t testing.TB, volume string, use func(set string) error) {
	t.Helper()
	for {
		link, err := os.Readlink(filepath.Join(volume, "..data"))
		node.Must(t, err)
		set := filepath.Join(volume, link)
		if err = use(set); err == nil {
			return
		}
		if _, gone := os.Lstat(set); !errors.Is(gone, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
}

// read parses the volume at path and checks that its three files match. The certificate may
// have expired: on a slow machine, the plugin can be late, and the test can be, too. A test of
// a renewal in time compares the times.
func read(t testing.TB, path string) (f files) {
	t.Helper()
	inOneSet(t, path, func(set string) (err error) {
		f, err = readSet(set)
		return err
	})
	return f
}

func readSet(set string) (f files, err error) {
	pair, err := tls.LoadX509KeyPair(filepath.Join(set, "tls.crt"), filepath.Join(set, "tls.key"))
	if err != nil {
		return f, err
	}
	roots, err := os.ReadFile(filepath.Join(set, "ca.crt"))
	if err != nil {
		return f, err
	}
	f = files{key: pair.PrivateKey.(crypto.Signer), roots: x509.NewCertPool()}
	if !f.roots.AppendCertsFromPEM(roots) {
		return f, errors.New("ca.crt contains no root")
	}
	for _, der := range pair.Certificate {
		certificate, err := x509.ParseCertificate(der)
		if err != nil {
			return f, err
		}
		f.chain = append(f.chain, certificate)
	}
	return f, verify(f.chain, f.roots)
}

// verify verifies a chain at this time, or at the end of the leaf's lifetime if that is over.
func verify(chain []*x509.Certificate, roots *x509.CertPool) error {
	at, intermediates := time.Now(), x509.NewCertPool()
	if expiry := chain[0].NotAfter; at.After(expiry) {
		at = expiry
	}
	for _, c := range chain[1:] {
		intermediates.AddCert(c)
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		_, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: intermediates, KeyUsages: []x509.ExtKeyUsage{usage}, CurrentTime: at})
		if err != nil {
			return err
		}
	}
	return nil
}

func (f files) leaf() *x509.Certificate { return f.chain[0] }

func TestPublishReadUnpublish(t *testing.T) {
	t.Parallel()
	n := newNode(t, startCA(t))
	p := node.Pod{Name: "web-0", Attributes: map[string]string{"service-names": "web", "dns-names": "${POD_NAME}.web.shop.svc.cluster.local"}}
	n.Publish(p)
	target := n.Target(p)
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
		t.Errorf("write into the volume: %v", err)
	}
	n.Unpublish(p)
	if _, err := os.Stat(target); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the target still exists: %v", err)
	}
	if m := n.Mounts(); len(m) > 0 {
		t.Errorf("still mounted: %q", m)
	}
	n.Unpublish(p) // unpublish is idempotent
}

// verifyWithOpenSSL checks the chain and the key with an independent implementation.
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
	t.Parallel()
	n := newNode(t, startCA(t))
	for _, test := range []struct {
		pod           node.Pod
		mode, keyMode fs.FileMode
		uid, gid      uint32
	}{
		{node.Pod{Name: "plain-0"}, 0o444, 0o444, 0, 0},
		{node.Pod{Name: "group-0", Group: "2000"}, 0o440, 0o440, 0, 2000},
		{node.Pod{Name: "mode-0", Group: "2000", Attributes: map[string]string{"fs-group": "3000", "file-mode": "0400"}}, 0o400, 0o400, 0, 3000},
		{node.Pod{Name: "owner-0", Attributes: map[string]string{"owner-uid": "999"}}, 0o444, 0o400, 999, 0},
		{node.Pod{Name: "libpq-0", Attributes: map[string]string{"owner-uid": "999", "privatekey-mode": "0600"}}, 0o444, 0o600, 999, 0},
	} {
		n.Publish(test.pod)
		for _, name := range []string{"tls.crt", "tls.key", "ca.crt"} {
			info, err := os.Stat(filepath.Join(n.Target(test.pod), name))
			node.Must(t, err)
			owner, mode := info.Sys().(*syscall.Stat_t), test.mode
			if name == "tls.key" {
				mode = test.keyMode
			}
			if info.Mode() != mode || owner.Uid != test.uid || owner.Gid != test.gid {
				t.Errorf("%s of %s: %v %d:%d", name, test.pod.Name, info.Mode(), owner.Uid, owner.Gid)
			}
		}
		n.Unpublish(test.pod)
	}
}

// An unprivileged process can read its key: through fsGroup, and also in a pod
// without fsGroup.
func TestUnprivilegedReaders(t *testing.T) {
	n := newNode(t, startCA(t))
	node.Must(t, exposed(n.KubeletDir))
	for _, test := range []struct {
		pod   node.Pod
		group uint32
		want  bool
	}{
		{node.Pod{Name: "plain-1"}, 65534, true},
		{node.Pod{Name: "group-1", Group: "2000"}, 2000, true},
		{node.Pod{Name: "group-2", Group: "2000"}, 2001, false},
	} {
		n.Publish(test.pod)
		cat := exec.Command("cat", filepath.Join(n.Target(test.pod), "tls.key"))
		cat.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: test.group}}
		out, err := cat.CombinedOutput()
		if got := err == nil; got != test.want {
			t.Errorf("%s as group %d: %v %s", test.pod.Name, test.group, err, out)
		}
		n.Unpublish(test.pod)
	}
}

// exposed makes a test's directory accessible to all users, as a pod's volumes are
// inside the pod.
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
		p := node.Pod{Name: "key-0", Attributes: map[string]string{
			"key-type": test.keyType, "key-encoding": test.encoding,
			"certificate-file": "server.pem", "privatekey-file": "server-key.pem", "ca-file": "roots.pem",
		}}
		n.Publish(p)
		_, err := tls.LoadX509KeyPair(n.Target(p)+"/server.pem", n.Target(p)+"/server-key.pem")
		node.Must(t, err)
		data, err := os.ReadFile(n.Target(p) + "/server-key.pem")
		node.Must(t, err)
		if block, _ := pem.Decode(data); block.Type != test.block {
			t.Errorf("%v: %s", test, block.Type)
		}
		if _, err := pemutil.ReadCertificate(n.Target(p) + "/roots.pem"); err != nil {
			t.Error(err)
		}
		n.Unpublish(p)
	}
}

func TestRotation(t *testing.T) {
	t.Parallel()
	n := newNode(t, startCA(t))
	for _, reuse := range []string{"false", "true"} {
		p := node.Pod{Name: "short-" + reuse, Attributes: map[string]string{"duration": "30s", "renew-before": "24s", "reuse-private-key": reuse}}
		n.Publish(p)
		first := read(t, n.Target(p))
		node.Eventually(t, time.Minute, "a new certificate", func() bool {
			return !read(t, n.Target(p)).leaf().Equal(first.leaf())
		})
		second := read(t, n.Target(p))
		same := first.key.(interface{ Equal(crypto.PrivateKey) bool }).Equal(second.key)
		if same != (reuse == "true") {
			t.Errorf("reuse-private-key %s: key reused: %v", reuse, same)
		}
		if issued(second.leaf()).After(first.leaf().NotAfter) {
			t.Error("the plugin renewed after the expiry")
		}
		n.Unpublish(p)
	}
}

// issued is when the CA issued the certificate, which it backdates by a minute.
func issued(c *x509.Certificate) time.Time { return c.NotBefore.Add(time.Minute) }

// A plugin that is killed and restarted finds the mounted volumes, and renews them once
// the kubelet has published them again.
func TestRestartByKill(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	n := newNode(t, ca)
	short := node.Pod{Name: "short-0", Attributes: map[string]string{"duration": "30s"}}
	long := node.Pod{Name: "long-0"}
	n.Publish(short)
	n.Publish(long)
	first, firstLong := read(t, n.Target(short)), read(t, n.Target(long))
	n.Kill()
	read(t, n.Target(short)) // still mounted and readable
	n.Start()
	if signs := ca.Signs(); signs != 2 {
		t.Errorf("%d signing requests after the restart, want 2", signs)
	}
	n.Republish()
	if signs := ca.Signs(); signs > 3 {
		t.Errorf("%d signing requests after the republish, want at most 3", signs)
	}
	node.Eventually(t, time.Minute, "a renewal after the restart", func() bool {
		return !read(t, n.Target(short)).leaf().Equal(first.leaf())
	})
	if issued(read(t, n.Target(short)).leaf()).After(first.leaf().NotAfter) {
		t.Error("the plugin renewed after the expiry")
	}
	if !read(t, n.Target(long)).leaf().Equal(firstLong.leaf()) {
		t.Error("the plugin renewed a certificate that is not due")
	}
	n.Publish(long) // the kubelet republishes periodically
	if !read(t, n.Target(long)).leaf().Equal(firstLong.leaf()) {
		t.Error("the republish renewed the certificate")
	}
	// The pod is deleted while the plugin is down.
	n.Kill()
	n.Start()
	n.Unpublish(short)
	n.Unpublish(long)
}

func TestGracefulStopLeavesMountsAlone(t *testing.T) {
	t.Parallel()
	n := newNode(t, startCA(t))
	p := node.Pod{Name: "web-0"}
	n.Publish(p)
	n.Stop()
	read(t, n.Target(p))
	for _, socket := range []string{n.Socket(), n.RegistrationSocket()} {
		if _, err := os.Lstat(socket); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s still exists", socket)
		}
	}
	n.Start()
	n.Unpublish(p)
}

// The real step-ca runs as its own process, built from its own module.
func TestRealStepCAProcess(t *testing.T) {
	t.Parallel()
	n := newNode(t, startRealCA(t))
	p := node.Pod{Name: "web-0", Attributes: map[string]string{"service-names": "web", "duration": "5m"}}
	n.Publish(p)
	leaf := read(t, n.Target(p)).leaf()
	if !strings.Contains(leaf.Issuer.CommonName, "Intermediate") {
		t.Errorf("the issuer is %s", leaf.Issuer)
	}
	n.Unpublish(p)
}
