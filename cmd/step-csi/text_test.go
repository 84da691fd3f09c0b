package main

import (
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf16"

	"go.step.sm/crypto/minica"
)

const byteOrderMark = "\ufeff"

// utf16Text is the text as PowerShell's > writes it.
func utf16Text(text string) string {
	b := []byte{0xff, 0xfe}
	for _, unit := range utf16.Encode([]rune(text)) {
		b = binary.LittleEndian.AppendUint16(b, unit)
	}
	return string(b)
}

func newRootPEM(t *testing.T) string {
	t.Helper()
	ca, err := minica.New()
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Root.Raw}))
}

// Files are read as editors of all systems write them. The errors name the file.
func TestFilesOfAdministrators(t *testing.T) {
	root, other := newRootPEM(t), newRootPEM(t)
	withBundle := strings.Replace(valid, "    fingerprint: 84a0ac1ea9fbcc5ac5ad51af0ff5a1bf02bd7d7ccd5bf8b0b8cb8b6a3d1f1f00\n", "    caBundleFile: roots.crt\n", 1)
	for name, test := range map[string]struct {
		file, content string
		want          string // empty if the file is good
	}{
		"roots":                             {"roots.crt", root + other, ""},
		"roots, CRLF":                       {"roots.crt", strings.ReplaceAll(root+other, "\n", "\r\n"), ""},
		"roots, byte-order mark":            {"roots.crt", byteOrderMark + root, ""},
		"roots, no newline at the end":      {"roots.crt", strings.TrimSpace(root), ""},
		"roots, text between":               {"roots.crt", "# Old\n" + root + "\n\n# New\n" + other + "\n\n", ""},
		"roots, empty":                      {"roots.crt", "", "roots.crt is empty"},
		"roots, blank":                      {"roots.crt", " \r\n\n", "roots.crt is empty"},
		"roots, byte-order mark alone":      {"roots.crt", byteOrderMark, "roots.crt is empty"},
		"roots, UTF-16":                     {"roots.crt", utf16Text(root), "roots.crt is in UTF-16"},
		"roots, the second one cut":         {"roots.crt", root + other[:300], "of its 2 PEM blocks, 1 can be read as certificates"},
		"roots, with a key":                 {"roots.crt", root + "-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n", "of its 2 PEM blocks, 1 can be read as certificates"},
		"roots, rubbish":                    {"roots.crt", "x", "caBundleFile"},
		"password, CRLF":                    {"password", "secret\r\n", ""},
		"password, byte-order mark":         {"password", byteOrderMark + "secret", ""},
		"password, empty":                   {"password", "", "password is empty"},
		"password, blank":                   {"password", "\r\n", "password is empty"},
		"password, UTF-16":                  {"password", utf16Text("secret\r\n"), "password is in UTF-16"},
		"configuration, CRLF":               {"step-csi.yaml", strings.ReplaceAll(withBundle, "\n", "\r\n"), ""},
		"configuration, byte-order mark":    {"step-csi.yaml", byteOrderMark + withBundle, ""},
		"configuration, mark and separator": {"step-csi.yaml", byteOrderMark + "---\n" + withBundle, ""},
		"configuration, empty":              {"step-csi.yaml", "", "step-csi.yaml is empty"},
		"configuration, UTF-16":             {"step-csi.yaml", utf16Text(withBundle), "step-csi.yaml is in UTF-16"},
		"fingerprint, of openssl":           {"step-csi.yaml", withFingerprint("sha256 Fingerprint=" + strings.Repeat("84:A0:", 15) + "84:A0"), ""},
		"fingerprint, upper case":           {"step-csi.yaml", withFingerprint(strings.Repeat("84A0", 16)), ""},
		"fingerprint, blanks":               {"step-csi.yaml", withFingerprint("  " + strings.Repeat("84 a0 ", 16)), ""},
		"fingerprint, newline":              {"step-csi.yaml", withFingerprint(strings.Repeat("84a0", 16) + "\\r\\n"), ""},
		"fingerprint, SHA-1":                {"step-csi.yaml", withFingerprint(strings.Repeat("84a0", 10)), "is not a SHA-256"},
		"fingerprint, blank":                {"step-csi.yaml", withFingerprint(" "), "is not a SHA-256"},
	} {
		t.Run(name, func(t *testing.T) {
			path := write(t, withBundle)
			files := map[string]string{"roots.crt": root, test.file: test.content}
			for file, content := range files {
				if err := os.WriteFile(filepath.Join(filepath.Dir(path), file), []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			c, err := loadConfig(path, (*configFile).node)
			if test.want == "" && err != nil || test.want != "" && !strings.Contains(fmt.Sprint(err), test.want) {
				t.Fatalf("got %v, want an error with %q", err, test.want)
			}
			if test.want == "" {
				c.close()
			}
			if !strings.HasPrefix(name, "password") || test.want != "" {
				return
			}
			if secret, err := secretFile(filepath.Join(filepath.Dir(path), "password"))(); err != nil || string(secret) != "secret" {
				t.Errorf("%q, %v", secret, err)
			}
		})
	}
}

// withFingerprint is the valid configuration with another fingerprint, in the double quotes of YAML.
func withFingerprint(text string) string {
	return strings.Replace(valid, "84a0ac1ea9fbcc5ac5ad51af0ff5a1bf02bd7d7ccd5bf8b0b8cb8b6a3d1f1f00", `"`+text+`"`, 1)
}

func TestTokenFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte(byteOrderMark+"a.b.c\r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	read := secretFile(path)
	if token, err := read(); err != nil || string(token) != "a.b.c" {
		t.Errorf("%q, %v", token, err)
	}
	// The kubelet replaces the file; while it is empty, the error says so.
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := read(); err == nil || !strings.Contains(err.Error(), path+" is empty") {
		t.Errorf("empty: %v", err)
	}
}
