package integration

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"go.step.sm/crypto/jose"
	"go.step.sm/crypto/minica"
	"go.step.sm/crypto/pemutil"
)

// stepCA is the real step-ca, built from its own module, as a process with
// files and a database.
type stepCA struct{ url, fingerprint string }

func (ca *stepCA) URL() string                { return ca.url }
func (ca *stepCA) Fingerprint() string        { return ca.fingerprint }
func (*stepCA) Provisioner() (string, string) { return "admin", "password" }

func startStepCA(t *testing.T) *stepCA {
	t.Helper()
	directory := t.TempDir()
	program := filepath.Join(directory, "step-ca")
	build := exec.Command("go", "build", "-o", program, "github.com/smallstep/certificates/cmd/step-ca")
	build.Dir = "../step-ca"
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // it would need a smart card library
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build step-ca: %v\n%s", err, out)
	}
	pki, err := minica.New(minica.WithName("Real"))
	must(t, err)
	address := freeAddress(t)
	config := writeStepCA(t, directory, address, pki)
	log := &buffer{}
	process := exec.Command(program, config)
	process.Stdout, process.Stderr = log, log
	must(t, process.Start())
	t.Cleanup(func() {
		_ = process.Process.Signal(syscall.SIGTERM)
		_ = process.Wait()
		if t.Failed() {
			t.Logf("step-ca's log:\n%s", log)
		}
	})
	eventually(t, 20*time.Second, "step-ca listens", func() bool {
		connection, err := net.Dial("tcp", address)
		if err == nil {
			connection.Close()
		}
		return err == nil
	})
	sum := sha256.Sum256(pki.Root.Raw)
	return &stepCA{url: "https://" + address, fingerprint: hex.EncodeToString(sum[:])}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer listener.Close()
	return listener.Addr().String()
}

// writeStepCA writes what `step ca init` does.
func writeStepCA(t *testing.T, directory, address string, pki *minica.CA) string {
	t.Helper()
	path := func(name string) string { return filepath.Join(directory, name) }
	for name, value := range map[string]any{"root_ca.crt": pki.Root, "intermediate_ca.crt": pki.Intermediate, "intermediate_ca_key": pki.Signer} {
		_, err := pemutil.Serialize(value, pemutil.ToFile(path(name), 0o600))
		must(t, err)
	}
	key, encrypted, err := jose.GenerateDefaultKeyPair([]byte("password"))
	must(t, err)
	sealed, err := encrypted.CompactSerialize()
	must(t, err)
	config, err := json.Marshal(map[string]any{
		"root": path("root_ca.crt"), "crt": path("intermediate_ca.crt"), "key": path("intermediate_ca_key"),
		"address": address, "dnsNames": []string{"127.0.0.1"},
		"logger": map[string]any{"format": "text"},
		"db":     map[string]any{"type": "badgerv2", "dataSource": path("db")},
		"authority": map[string]any{"provisioners": []any{map[string]any{
			"type": "JWK", "name": "admin", "key": key, "encryptedKey": sealed,
		}}},
	})
	must(t, err)
	must(t, os.WriteFile(path("ca.json"), config, 0o600))
	return path("ca.json")
}
