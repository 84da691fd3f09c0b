package integration

import (
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/driver/tmpfs"
	"github.com/flexstack/step-csi/test/keystores"
	"github.com/flexstack/step-csi/test/node"
)

// podWithStores wants all key stores, for another user than the plugin's.
func podWithStores(name string) node.Pod {
	return node.Pod{Name: name, Attributes: map[string]string{
		"service-names": "orders", "pkcs12-file": "keystore.p12", "pkcs12-truststore-file": "truststore.p12",
		"jks-file": "keystore.jks", "jks-truststore-file": "truststore.jks", "keystore-alias": "orders", "duration": "20s",
		"owner-uid": "999",
	}}
}

// readStores checks all files of podWithStores, and returns the leaf.
func readStores(t *testing.T, n *node.Node, p node.Pod) *x509.Certificate {
	t.Helper()
	inOneSet(t, n.Target(p), func(set string) error {
		root, err := os.OpenRoot(set)
		if err != nil {
			return err
		}
		defer root.Close()
		return keystores.Check(root, attributes.Files{
			Certificate: "tls.crt", PrivateKey: "tls.key", CA: "ca.crt", PKCS12: "keystore.p12", PKCS12TrustStore: "truststore.p12",
			JKS: "keystore.jks", JKSTrustStore: "truststore.jks", KeyStorePassword: "keystore-password",
		}, "orders", p.Secret["keystore-password"])
	})
	return read(t, n.Target(p)).leaf()
}

// Programs read the key stores with the password beside them. It stays the same when the
// certificate is renewed and the plugin restarts.
func TestKeyStores(t *testing.T) {
	t.Parallel()
	n := newNode(t, startCA(t))
	p := podWithStores("orders-0")
	n.Publish(p)
	first := readStores(t, n, p)
	passwordFile := filepath.Join(n.Target(p), "keystore-password")
	password, err := os.ReadFile(passwordFile)
	node.Must(t, err)
	renewed := func() bool { return !readStores(t, n, p).Equal(first) }
	node.Eventually(t, time.Minute, "a renewal", renewed)
	n.Stop()
	n.Start()
	n.Republish()
	first = readStores(t, n, p)
	node.Eventually(t, time.Minute, "a renewal after a restart", renewed)
	if again, err := os.ReadFile(passwordFile); err != nil || string(again) != string(password) {
		t.Errorf("another password, or error %v", err)
	}
	for _, name := range []string{"keystore.p12", "truststore.p12"} {
		if out, err := exec.Command("openssl", "pkcs12", "-noout", "-in", filepath.Join(n.Target(p), name), "-passin", "file:"+passwordFile).CombinedOutput(); err != nil {
			t.Errorf("openssl with %s: %v\n%s", name, err, out)
		}
	}
	for name, entry := range map[string]string{
		"keystore.p12": "orders, ", "keystore.jks": "orders, ", "truststore.p12": "trustedCertEntry", "truststore.jks": "trustedCertEntry",
	} {
		out, err := exec.Command("keytool", "-list", "-keystore", filepath.Join(n.Target(p), name), "-storepass:file", passwordFile).CombinedOutput()
		if err != nil || !strings.Contains(string(out), entry) {
			t.Errorf("keytool with %s: %v\n%s", name, err, out)
		}
	}
	n.Unpublish(p)
}

// No password of a Secret, and none that a user has put into an attribute, is in a log, in a
// file, in the volume's record or in an error. A generated one is in the file for it alone.
func TestPasswordsAreKeptSecret(t *testing.T) {
	t.Parallel()
	n := node.New(t, binary, startCA(t))
	n.Flags = []string{"--v=10"}
	n.Start()
	passwords := []string{"first-s3cret-of-the-Secret", "second-s3cret-of-the-Secret", "wrong-s3cret-of-the-Secret\n", "s3cret-in-an-attribute"}
	p, generated := podWithStores("given-0"), podWithStores("generated-0")
	p.Secret = map[string]string{"keystore-password": passwords[0], "other": "ignored"}
	n.Publish(p)
	n.Publish(generated)
	text, err := os.ReadFile(filepath.Join(n.Target(generated), "keystore-password"))
	node.Must(t, err)
	first := readStores(t, n, p)
	node.Eventually(t, time.Minute, "a renewal", func() bool { return !readStores(t, n, p).Equal(first) })

	p.Secret = map[string]string{"keystore-password": passwords[1]}
	n.Publish(p)
	readStores(t, n, p)
	// A password that cannot be used changes nothing, and stops no renewal.
	wrong := p
	wrong.Secret = map[string]string{"keystore-password": passwords[2]}
	n.Publish(wrong)
	first = readStores(t, n, p)
	// Nor does a Secret that has been emptied. The kubelet then sends the same as without one.
	emptied := p
	emptied.Secret = nil
	n.Publish(emptied)
	readStores(t, n, p)
	node.Eventually(t, time.Minute, "a renewal in spite of a wrong password", func() bool { return !readStores(t, n, p).Equal(first) })

	wrong.Name = "wrong-0"
	expect(t, n.TryPublish(wrong), codes.InvalidArgument, "it ends with a newline")
	expect(t, n.TryPublish(podWithStores("attribute-0").With("keystore-password", passwords[3])), codes.InvalidArgument, "put it into a Secret under the key keystore-password")
	expect(t, n.TryPublish(node.Pod{Name: "other-0", Secret: p.Secret}), codes.InvalidArgument, "the volume has none")

	n.Stop()
	n.Start()
	n.Publish(p)
	n.Publish(generated)
	first = readStores(t, n, p)
	node.Eventually(t, time.Minute, "a renewal after a restart", func() bool { return !readStores(t, n, p).Equal(first) })

	for _, volume := range []node.Pod{p, generated} {
		target, err := os.Open(n.Target(volume))
		node.Must(t, err)
		record, err := tmpfs.Record(target)
		node.Must(t, errors.Join(err, target.Close()))
		if len(record) == 0 {
			t.Error("no record")
		}
		for _, password := range append(passwords, string(text)) {
			if strings.Contains(string(record), strings.TrimSpace(password)) {
				t.Errorf("the record of %s has a password", volume.Name)
			}
		}
	}
	node.Must(t, filepath.WalkDir(filepath.Dir(n.Config), func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a renewal has replaced the files
		}
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		for _, password := range append(passwords, string(text)) {
			if strings.Contains(string(data), strings.TrimSpace(password)) && !(password == string(text) && filepath.Base(path) == "keystore-password") {
				t.Errorf("%s has a password", path)
			}
		}
		return err
	}))
	n.Unpublish(p)
	n.Unpublish(generated)
	n.Stop()
	for _, password := range append(passwords, string(text)) {
		if strings.Contains(n.Logs.String(), strings.TrimSpace(password)) {
			t.Error("a password is in the log")
		}
	}
}
