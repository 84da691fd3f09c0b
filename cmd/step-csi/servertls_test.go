package main

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.step.sm/crypto/minica"
	"golang.org/x/crypto/x509roots/fallback/bundle"
)

// TestServerRoots runs itself with another set of system roots, which crypto/x509 reads
// once per process.
func TestServerRoots(t *testing.T) {
	directory := t.TempDir()
	pki, err := minica.New()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(directory, "roots.crt")
	roots := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pki.Root.Raw})
	if err := errors.Join(
		os.WriteFile(file, roots, 0o600),
		os.WriteFile(filepath.Join(directory, "marked.crt"), append([]byte("\xef\xbb\xbf"), roots...), 0o600),
		os.WriteFile(filepath.Join(directory, "damaged.crt"), append(roots, roots[:100]...), 0o600),
	); err != nil {
		t.Fatal(err)
	}
	own := x509.NewCertPool()
	own.AddCert(pki.Root)
	for name, want := range map[string]struct {
		file serverTLSFile
		pool *x509.CertPool
	}{
		"default": {serverTLSFile{}, nil},
		"bundle":  {serverTLSFile{ServerTLS: "bundle", ServerTLSBundleFile: "roots.crt"}, own},
		"marked":  {serverTLSFile{ServerTLS: "bundle", ServerTLSBundleFile: "marked.crt"}, own},
	} {
		pool, err := want.file.serverRoots(directory)
		if err != nil || (pool == nil) != (want.pool == nil) || pool != nil && !pool.Equal(want.pool) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := (serverTLSFile{ServerTLS: "bundle", ServerTLSBundleFile: "damaged.crt"}).serverRoots(directory); err == nil || !strings.Contains(err.Error(), "of its 2 PEM blocks, 1 can be read") {
		t.Errorf("a damaged block: %v", err)
	}

	const inProcess = "STEP_CSI_TEST_SYSTEM_ROOTS"
	switch os.Getenv(inProcess) {
	case "machine":
		if pool, err := (serverTLSFile{ServerTLS: "system"}).serverRoots(""); err != nil || !pool.Equal(poolOf(t, os.Getenv("SSL_CERT_FILE"))) {
			t.Errorf("other roots than those of the machine: %v", err)
		}
		return
	case "none":
		pool, err := (serverTLSFile{ServerTLS: "system"}).serverRoots("")
		if err != nil || !trustsTheWeb(t, pool) {
			t.Errorf("no publicly trusted roots: %v", err)
		}
		return
	}
	for kind, roots := range map[string]string{"machine": file, "none": filepath.Join(directory, "none")} {
		child := exec.Command(os.Args[0], "-test.run", "^TestServerRoots$")
		child.Env = append(os.Environ(), inProcess+"="+kind, "SSL_CERT_FILE="+roots, "SSL_CERT_DIR="+filepath.Join(directory, "none"))
		if out, err := child.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", kind, err, out)
		}
	}
}

func poolOf(t *testing.T, file string) *x509.CertPool {
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(data)
	return pool
}

// trustsTheWeb tells whether the pool has ISRG Root X1, of Let's Encrypt.
func trustsTheWeb(t *testing.T, pool *x509.CertPool) bool {
	for root := range bundle.Roots() {
		certificate, err := x509.ParseCertificate(root.Certificate)
		if err != nil {
			t.Fatal(err)
		}
		if certificate.Subject.CommonName == "ISRG Root X1" {
			_, err := certificate.Verify(x509.VerifyOptions{Roots: pool, CurrentTime: certificate.NotBefore})
			return err == nil
		}
	}
	return false
}

// The metrics tell which URL is used, for issuers with several URLs only.
func TestMetricsOfURLs(t *testing.T) {
	text := strings.Replace(valid, "url: https://step-certificates.step-ca.svc.cluster.local", "urls: ['https://CA-0.example.com:443/', 'https://ca-1.example.com']", 1)
	for config, want := range map[string][]string{
		valid: {},
		text: {
			`step_csi_issuer_url_failures_total{issuer="default",url="https://ca-0.example.com"} 0`,
			`step_csi_issuer_url_failures_total{issuer="default",url="https://ca-1.example.com"} 0`,
			`step_csi_issuer_url_in_use{issuer="default",url="https://ca-0.example.com"} 1`,
			`step_csi_issuer_url_in_use{issuer="default",url="https://ca-1.example.com"} 0`,
		},
	} {
		c, err := loadConfig(write(t, config), (*configFile).node)
		if err != nil {
			t.Fatal(err)
		}
		registry := prometheus.NewPedanticRegistry()
		c.registerURLs(registry)
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, family := range families {
			for _, m := range family.GetMetric() {
				labels := m.GetLabel()
				value := m.GetGauge().GetValue() + m.GetCounter().GetValue()
				got = append(got, family.GetName()+`{issuer="`+labels[0].GetValue()+`",url="`+labels[1].GetValue()+`"} `+map[bool]string{true: "1", false: "0"}[value == 1])
			}
		}
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("%s", strings.Join(got, "\n"))
		}
	}
}
