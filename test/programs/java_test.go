package programs

import (
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/flexstack/step-csi/test/node"
)

// A server and a client in Java use both kinds of key stores, with each kind of key, and
// find new files without a restart.
func TestJava(t *testing.T) {
	t.Parallel()
	page := documented(t, "Java")
	pkcs12, jks := node.Pod{Attributes: page.attributes(0)}, node.Pod{Attributes: page.attributes(1)}
	for name, test := range map[string]struct {
		volume node.Pod
		files  []string
	}{
		"pkcs12": {pkcs12, []string{"keystore.p12", "truststore.p12"}},
		"legacy": {pkcs12.With("pkcs12-profile", "legacy").With("key-type", "rsa-2048"), []string{"keystore.p12", "truststore.p12"}},
		"jks":    {jks.With("key-type", "ed25519"), []string{"keystore.jks", "truststore.jks"}},
	} {
		t.Run(name, func(t *testing.T) {
			peer{
				section: "Java", language: "java", source: "Peer.java",
				program: java, files: test.files, volume: test.volume.Attributes,
				mistrust: "PKIX path (?:building|validation) failed", misnamed: "No subject alternative DNS name matching",
			}.test(t)
		})
	}
}

// quickly are flags for Java programs that run for a second.
var quickly = []string{"-XX:TieredStopAtLevel=1", "-Xshare:auto", "-XX:+UseSerialGC"}

var compiled sync.Mutex // one compiler at a time

// java compiles a program of one file, and returns the command that runs it.
func java(t testing.TB, source string) []string {
	t.Helper()
	compiled.Lock()
	defer compiled.Unlock()
	class := strings.TrimSuffix(filepath.Base(source), ".java")
	directory := filepath.Dir(source)
	if out, err := exec.Command("javac", "-J-XX:TieredStopAtLevel=1", "-d", directory, source).CombinedOutput(); err != nil {
		t.Fatalf("javac %s: %v\n%s", source, err, out)
	}
	return append(append([]string{"java"}, quickly...), "-cp", directory, class)
}

// keytool lists the volume's key stores with the password from the volume.
func TestKeytool(t *testing.T) {
	t.Parallel()
	w := newPods(t)
	as := account{uid: 10001, fsGroup: 10001}
	p := as.pod("web-0", map[string]string{"keystore-alias": "web"})
	stores := []struct{ attribute, file, kind, entry string }{
		{"pkcs12-file", "keystore.p12", "PKCS12", "web, .*PrivateKeyEntry"},
		{"pkcs12-truststore-file", "truststore.p12", "PKCS12", "ca-[0-9a-f]{16}, .*trustedCertEntry"},
		{"jks-file", "keystore.jks", "JKS", "web, .*PrivateKeyEntry"},
		{"jks-truststore-file", "truststore.jks", "JKS", "ca-[0-9a-f]{16}, .*trustedCertEntry"},
	}
	for _, store := range stores {
		p = p.With(store.attribute, store.file)
	}
	v := w.publish(p)
	for _, store := range stores {
		out := mustRun(t, as, w.directory(as), "keytool", "-J-XX:TieredStopAtLevel=1", "-list",
			"-keystore", v.file(store.file), "-storepass:file", v.file("keystore-password"))
		for _, want := range []string{"Keystore type: " + store.kind, "contains 1 entry", store.entry} {
			if !regexp.MustCompile(want).MatchString(out) {
				t.Errorf("%s: keytool prints\n%s\nwant %q in it", store.file, out, want)
			}
		}
	}
}
