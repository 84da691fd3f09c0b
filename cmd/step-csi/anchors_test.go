package main

import (
	"bytes"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/klog/v2"
	"k8s.io/klog/v2/textlogger"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/trust"
)

// configuredIssuer returns the issuer "default" of a configuration of the node plugin, in which
// the lines are added to it, the directory of its files, and the log of its start.
func configuredIssuer(t *testing.T, lines string) (i *issuer.Issuer, directory, log string) {
	t.Helper()
	path := write(t, strings.Replace(valid, "    duration:", lines+"    duration:", 1))
	c, err := loadConfig(path, (*configFile).node)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.close)
	var b bytes.Buffer
	c.warnPublicRoots(klog.NewContext(t.Context(), textlogger.NewLogger(textlogger.NewConfig(textlogger.Output(&b)))))
	return c.driverConfig(nodeOptions{}, nil).Issuers["default"].Issuer, filepath.Dir(path), b.String()
}

// publicRoots adds the roots that Mozilla trusts, warns about what that means, and costs
// nothing where it is not used.
func TestPublicRoots(t *testing.T) {
	const warning = "servers that verify clients by ca.crt accept certificates of every public CA"
	i, _, log := configuredIssuer(t, "")
	if got := i.LatestRoots(); len(got.All()) != 0 || strings.Contains(log, warning) {
		t.Errorf("without publicRoots: %d roots; log:\n%s", len(got.All()), log)
	}
	i, _, log = configuredIssuer(t, "    publicRoots: true\n")
	public := i.LatestRoots().Public
	if !strings.Contains(log, warning) || !strings.Contains(log, `issuer="default"`) {
		t.Errorf("no warning:\n%s", log)
	}
	if len(public) < 80 || len(trust.Union(public, nil)) != len(public) || !trustsTheWeb(t, trust.Pool(public)) {
		t.Errorf("%d roots, or not those of the web", len(public))
	}
	bytes := 0
	for _, root := range public {
		bytes += len(root.Raw)
		if !root.IsCA || time.Now().After(root.NotAfter) {
			t.Errorf("%s is no root, or has expired at %s", root.Subject, root.NotAfter)
		}
	}
	if most := maxAdditionalRootsFile / 2; len(public) > issuer.MaxAdditionalRoots || bytes > most {
		t.Errorf("%d roots with %d bytes: a volume has room for %d with %d bytes", len(public), bytes, issuer.MaxAdditionalRoots, most)
	}
}

// All issuers of a process share the public roots.
func TestPublicRootsAreShared(t *testing.T) {
	_, issuers, _ := strings.Cut(valid, "issuers:\n")
	issuers, policy, _ := strings.Cut(issuers, "policy:\n")
	one := strings.Replace(issuers, "    duration:", "    publicRoots: true\n    duration:", 1)
	c, err := loadConfig(write(t, "issuers:\n"+one+strings.Replace(one, "default:", "other:", 1)+"policy:\n"+policy), (*configFile).node)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	a, b := c.issuers["default"].issuer.LatestRoots().Public, c.issuers["other"].issuer.LatestRoots().Public
	if len(a) == 0 || len(a) != len(b) || a[0] != b[0] {
		t.Errorf("two copies of %d and %d roots", len(a), len(b))
	}
}

// The file of additional roots is read again, within bounds, and its errors name it.
func TestAdditionalRootsFile(t *testing.T) {
	i, directory, _ := configuredIssuer(t, "    additionalRootsFile: root.crt\n")
	if got := i.LatestRoots().Additional; len(got) != 1 {
		t.Errorf("%d additional roots", len(got))
	}
	read, err := anchorsFile{AdditionalRootsFile: "root.crt"}.additionalRoots(directory)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(directory, "root.crt")
	root, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	another := publicRoot(t)
	for _, test := range []struct {
		name    string
		content []byte
		roots   int
		err     string
	}{
		{"several", append(bytes.Clone(root), another...), 2, ""},
		{"a comment", append([]byte("# CA of the data centre\n"), root...), 1, ""},
		{"a damaged block", append(bytes.Clone(root), root[:100]...), 0, path + ": of its 2 PEM blocks, 1 can be read"},
		{"a private key", append(bytes.Clone(root), "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"...), 0, "nothing but whole blocks of the type CERTIFICATE"},
		{"too large", append(bytes.Repeat([]byte("\n"), maxAdditionalRootsFile), root...), 0, "524288 are allowed"},
		{"repaired", root, 1, ""},
	} {
		if err := os.WriteFile(path, test.content, 0o600); err != nil {
			t.Fatal(err)
		}
		roots, err := read()
		if len(roots) != test.roots || (err == nil) != (test.err == "") ||
			err != nil && (!strings.HasPrefix(err.Error(), "additionalRootsFile (in the chart: additionalRoots): ") || !strings.Contains(err.Error(), test.err)) {
			t.Errorf("%s: %d roots, %v", test.name, len(roots), err)
		}
	}
}

// publicRoot returns one of the public roots in PEM.
func publicRoot(t *testing.T) []byte {
	t.Helper()
	roots, err := publicRoots()
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: roots[0].Raw})
}

// Only node plugins write roots into volumes.
func TestAuthorityHasNoAnchors(t *testing.T) {
	for _, line := range []string{"additionalRootsFile: root.crt", "publicRoots: true"} {
		_, err := loadConfig(write(t, strings.Replace(valid+authorityPart, "    duration:", "    "+line+"\n    duration:", 1)), (*configFile).ra)
		if err == nil || !strings.Contains(err.Error(), "issuers.default: additionalRootsFile and publicRoots are for step-csi node") {
			t.Errorf("%s: %v", line, err)
		}
	}
}
