//go:build e2e

package image

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"debug/elf"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.step.sm/crypto/minica"
	"go.step.sm/crypto/pemutil"
)

// The images for arm64 have programs for arm64, and their commands run, in an emulator of
// its processor. The emulator has no mounts: only a real machine can show the node plugin.
func TestOtherMachine(t *testing.T) {
	archives := build(t, "../..", "022", "UTC", "linux/arm64")
	for _, want := range expectations {
		got := load(t, filepath.Join(archives, want.title), want.name())
		if !bytes.Contains(got.config, []byte(`"architecture":"arm64"`)) {
			t.Errorf("%s: the image is not for arm64: %s", want.title, got.config)
		}
		programs := map[string]string{}
		for name, content := range checkFiles(t, got, want) {
			programs[name] = executable(t, name, content)
			out := emulate(t, programs[name], want.programs[name])
			if !strings.HasPrefix(out, name+" "+version+" go") || !strings.Contains(out, "linux/arm64") {
				t.Errorf("%s %s: %s", name, want.programs[name], out)
			}
		}
		if program := programs["step-csi"]; program != "" {
			for _, command := range []string{"node", "ra", "verify"} {
				if out := emulate(t, program, command, "--help"); !strings.Contains(out, "Usage: step-csi "+command) {
					t.Errorf("%s --help: %s", command, out)
				}
			}
			if out := emulate(t, program, "verify", copyOfVolume(t)); !strings.Contains(out, "web.shop.svc") {
				t.Errorf("verify: %s", out)
			}
		}
	}
}

// executable writes the program to a file.
func executable(t *testing.T, name string, content []byte) string {
	t.Helper()
	program, err := elf.NewFile(bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	if program.Machine != elf.EM_AARCH64 {
		t.Errorf("%s is a program for %s", name, program.Machine)
	}
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, content, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func emulate(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := exec.Command("qemu-aarch64-static", append([]string{program}, args...)...).CombinedOutput()
	if err != nil {
		t.Errorf("%s %q: %v", filepath.Base(program), args, err)
	}
	return string(out)
}

// copyOfVolume returns a directory with the files of a volume.
func copyOfVolume(t *testing.T) string {
	t.Helper()
	ca, err := minica.New()
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := ca.Sign(&x509.Certificate{
		DNSNames: []string{"web.shop.svc"}, PublicKey: key.Public(), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		t.Fatal(err)
	}
	directory := t.TempDir()
	for name, contents := range map[string][]any{"tls.crt": {leaf, ca.Intermediate}, "tls.key": {key}, "ca.crt": {ca.Root}} {
		var text []byte
		for _, content := range contents {
			block, err := pemutil.Serialize(content)
			if err != nil {
				t.Fatal(err)
			}
			text = append(text, pem.EncodeToMemory(block)...)
		}
		if err := os.WriteFile(filepath.Join(directory, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return directory
}
