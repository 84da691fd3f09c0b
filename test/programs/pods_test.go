package programs

import (
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"go.step.sm/crypto/pemutil"

	"github.com/flexstack/step-csi/test/embeddedca"
	"github.com/flexstack/step-csi/test/node"
)

// pods is a node with two issuers, "default" and "other", each with a CA of its own. The
// pods are in the namespace shop.
type pods struct {
	t         testing.TB
	node      *node.Node
	ca, other *embeddedca.CA
}

func newPods(t testing.TB) *pods {
	t.Helper()
	w := &pods{t: t, ca: startCA(t), other: startCA(t)}
	w.node = node.New(t, binary, w.ca)
	name, password := w.other.Provisioner()
	node.Must(t, os.WriteFile(filepath.Join(filepath.Dir(w.node.Config), "other-password"), []byte(password), 0o600))
	w.node.ChangeConfig("  default:\n", fmt.Sprintf(`  other:
    url: %s
    fingerprint: %s
    provisioner: {type: jwk, name: %s, passwordFile: other-password}
    duration: {default: 1h, max: 24h, min: 1s}
  default:
    roots: {refresh: 1s, federation: true}
`, w.other.URL(), w.other.Fingerprint(), name))
	w.node.Start()
	return w
}

func startCA(t testing.TB) *embeddedca.CA {
	t.Helper()
	ca, err := embeddedca.Start(embeddedca.Config{})
	node.Must(t, err)
	t.Cleanup(ca.Stop)
	return ca
}

// account is who a container's processes run as. The zero value is root.
type account struct {
	uid     uint32 // of user and group
	fsGroup uint32 // of the pod; none, if zero
}

func (a account) credential() *syscall.Credential {
	c := &syscall.Credential{Uid: a.uid, Gid: a.uid}
	if a.fsGroup != 0 {
		c.Groups = []uint32{a.fsGroup}
	}
	return c
}

// pod is a pod of this user, with a volume.
func (a account) pod(name string, attributes map[string]string) node.Pod {
	p := node.Pod{Name: name, Attributes: attributes}
	if a.fsGroup != 0 {
		p.Group = strconv.Itoa(int(a.fsGroup))
	}
	return p
}

// volume is a mounted volume, as a container sees it.
type volume struct {
	pods *pods
	pod  node.Pod
	// path is where the volume is mounted for the container.
	path     string
	renewals int
}

// publish publishes the pod's volume and mounts it for its container, which may enter the
// directory and can write nothing there.
func (w *pods) publish(p node.Pod) *volume {
	w.t.Helper()
	w.node.Publish(p)
	// Users other than root cannot enter the kubelet's directory, here as on a real node.
	v := &volume{pods: w, pod: p, path: w.directory(account{})}
	node.Must(w.t, syscall.Mount(w.node.Target(p), v.path, "", syscall.MS_BIND, ""))
	w.t.Cleanup(func() {
		if err := syscall.Unmount(v.path, syscall.MNT_DETACH); err != nil {
			w.t.Error(err)
		}
	})
	node.Must(w.t, syscall.Mount("", v.path, "", syscall.MS_BIND|syscall.MS_REMOUNT|syscall.MS_RDONLY, ""))
	return v
}

// directory is a new directory of that user's, below directories that all users may enter.
func (w *pods) directory(of account) string {
	w.t.Helper()
	parent := filepath.Dir(string(binary))
	node.Must(w.t, os.Chmod(parent, 0o711))
	// Not the test's own directory: the path of a socket has at most 107 bytes.
	path, err := os.MkdirTemp(parent, "pod-")
	node.Must(w.t, err)
	w.t.Cleanup(func() {
		if err := os.RemoveAll(path); err != nil {
			w.t.Error(err)
		}
	})
	node.Must(w.t, os.Chown(path, int(of.uid), int(of.uid)))
	return path
}

// file is the path of one of the volume's files.
func (v *volume) file(name string) string { return filepath.Join(v.path, name) }

// leaf is the certificate in the volume.
func (v *volume) leaf() *x509.Certificate {
	v.pods.t.Helper()
	chain, err := pemutil.ReadCertificateBundle(v.file("tls.crt"))
	node.Must(v.pods.t, err)
	return chain[0]
}

// renew has the plugin renew the certificate at once. The kubelet's next call has another
// value of an attribute, which makes no difference to the files. Each value is a new one: the
// plugin may still write the record of the previous renewal.
func (v *volume) renew() {
	v.pods.t.Helper()
	before := v.leaf()
	v.renewals++
	v.pod = v.pod.With("renew-before", fmt.Sprintf("20m%ds", v.renewals))
	v.pods.node.Publish(v.pod)
	node.Eventually(v.pods.t, time.Minute, v.pod.Name+"'s certificate is renewed", func() bool { return !v.leaf().Equal(before) })
}

// trustOther has the issuer default add the root of the other CA to the roots of all its
// volumes, and waits until this volume has it.
func (v *volume) trustOther() {
	v.pods.t.Helper()
	node.Must(v.pods.t, v.pods.ca.SetFederated(v.pods.other.Root()))
	node.Eventually(v.pods.t, time.Minute, v.pod.Name+" has the root of the other CA", func() bool {
		roots, err := pemutil.ReadCertificateBundle(v.file("ca.crt"))
		return err == nil && slices.ContainsFunc(roots, v.pods.other.Root().Equal)
	})
}

// host is the name by which clients connect to the pod's Service.
func (v *volume) host() string {
	v.pods.t.Helper()
	names := v.leaf().DNSNames
	at := slices.IndexFunc(names, func(name string) bool { return filepath.Ext(name) == ".svc" })
	if at < 0 {
		v.pods.t.Fatalf("%s: none of the names %q ends in .svc; does the page set service-names?", v.pod.Name, names)
	}
	return names[at]
}
