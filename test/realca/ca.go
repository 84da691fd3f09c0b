// Package realca runs the real step-ca program, built from its own module, as a
// process with files and a database, on loopback.
package realca

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"go.step.sm/crypto/jose"
	"go.step.sm/crypto/minica"
	"go.step.sm/crypto/pemutil"
)

// CA is a running step-ca. Its provisioner and password are those that
// Provisioner returns, and its lifetimes step-ca's defaults.
type CA struct {
	address string
	pki     *minica.CA
	process *exec.Cmd
	log     bytes.Buffer
}

// Start builds step-ca, sets it up below directory as `step ca init` does, and
// waits until it listens.
func Start(directory string) (*CA, error) {
	program := filepath.Join(directory, "step-ca")
	build := exec.Command("go", "build", "-trimpath", "-o", program, "github.com/smallstep/certificates/cmd/step-ca")
	// The program has a module of its own, beside this package.
	_, here, _, _ := runtime.Caller(0)
	build.Dir = filepath.Join(filepath.Dir(here), "module")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // it would need a smart card library
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build step-ca: %w\n%s", err, out)
	}
	pki, err := minica.New(minica.WithName("Real"))
	if err != nil {
		return nil, err
	}
	ca := &CA{pki: pki}
	if ca.address, err = freeAddress(); err != nil {
		return nil, err
	}
	config, err := ca.write(directory)
	if err != nil {
		return nil, err
	}
	ca.process = exec.Command(program, config)
	ca.process.Stdout, ca.process.Stderr = &ca.log, &ca.log
	if err := ca.process.Start(); err != nil {
		return nil, err
	}
	return ca, ca.wait()
}

func freeAddress() (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return listener.Addr().String(), listener.Close()
}

// write writes what `step ca init` does.
func (ca *CA) write(directory string) (config string, err error) {
	path := func(name string) string { return filepath.Join(directory, name) }
	for name, value := range map[string]any{
		"root_ca.crt": ca.pki.Root, "intermediate_ca.crt": ca.pki.Intermediate, "intermediate_ca_key": ca.pki.Signer,
	} {
		if _, err := pemutil.Serialize(value, pemutil.ToFile(path(name), 0o600)); err != nil {
			return "", err
		}
	}
	name, password := ca.Provisioner()
	key, encrypted, err := jose.GenerateDefaultKeyPair([]byte(password))
	if err != nil {
		return "", err
	}
	sealed, err := encrypted.CompactSerialize()
	if err != nil {
		return "", err
	}
	data, err := json.Marshal(map[string]any{
		"root": path("root_ca.crt"), "crt": path("intermediate_ca.crt"), "key": path("intermediate_ca_key"),
		"address": ca.address, "dnsNames": []string{"127.0.0.1"},
		"db": map[string]any{"type": "badgerv2", "dataSource": path("db")},
		"authority": map[string]any{"provisioners": []any{map[string]any{
			"type": "JWK", "name": name, "key": key, "encryptedKey": sealed,
		}}},
	})
	if err != nil {
		return "", err
	}
	return path("ca.json"), os.WriteFile(path("ca.json"), data, 0o600)
}

func (ca *CA) wait() error {
	for start := time.Now(); time.Since(start) < 20*time.Second; time.Sleep(10 * time.Millisecond) {
		if connection, err := net.Dial("tcp", ca.address); err == nil {
			return connection.Close()
		}
	}
	ca.Stop()
	return fmt.Errorf("step-ca does not listen:\n%s", ca.log.String())
}

// Stop ends the process.
func (ca *CA) Stop() {
	err := ca.process.Process.Signal(syscall.SIGTERM)
	if !errors.Is(err, os.ErrProcessDone) {
		_ = ca.process.Wait()
	}
}

// Log is what the process has printed. Call it after Stop.
func (ca *CA) Log() string { return ca.log.String() }

// URL of the CA.
func (ca *CA) URL() string { return "https://" + ca.address }

// Provisioner returns the name and the password of the JWK provisioner.
func (*CA) Provisioner() (name, password string) { return "admin", "password" }

// RootPEM is the CA's root certificate in PEM.
func (ca *CA) RootPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.pki.Root.Raw})
}

// Fingerprint is the SHA-256 of the root in hexadecimal.
func (ca *CA) Fingerprint() string {
	sum := sha256.Sum256(ca.pki.Root.Raw)
	return hex.EncodeToString(sum[:])
}
