package integration

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"go.step.sm/crypto/minica"
	"go.step.sm/crypto/pemutil"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flexstack/step-csi/test/logs"
	"github.com/flexstack/step-csi/test/node"
	"github.com/flexstack/step-csi/test/realca"
)

// skewVariable is the environment variable by whose value, in seconds, the wall clock of
// skewedBinary is ahead.
const skewVariable = "STEP_CSI_TEST_SKEW"

// skewedBinary builds step-csi with another time.Now, once. Nothing else can give one process
// another wall clock: a time namespace does not, and libfaketime does not reach a static
// binary, which reads the clock without a system call. The monotonic clock and the timers
// stay.
var skewedBinary = sync.OnceValues(func() (node.Binary, error) {
	output, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return "", err
	}
	directory, err := os.MkdirTemp("", "step-csi-skewed-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(directory)
	original := filepath.Join(strings.TrimSpace(string(output)), "src", "time", "time.go")
	source, err := os.ReadFile(original)
	if err != nil {
		return "", err
	}
	const before = "func Now() Time {\n\tsec, nsec, mono := runtimeNow()\n"
	if strings.Count(string(source), before) != 1 {
		return "", fmt.Errorf("%s has another time.Now than this test knows", original)
	}
	skewed := strings.Replace(string(source), before, before+"\tsec += int64(skew)\n", 1)
	files := map[string]string{
		"time.go": skewed,
		"skew.go": fmt.Sprintf("package time\n\nimport \"syscall\"\n\nvar skew = func() int {\n\ttext, _ := syscall.Getenv(%q)\n\tseconds, _ := atoi(text)\n\treturn seconds\n}()\n", skewVariable),
	}
	replace := map[string]string{}
	for name, content := range files {
		path := filepath.Join(directory, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			return "", err
		}
		replace[filepath.Join(filepath.Dir(original), name)] = path
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	list := filepath.Join(directory, "overlay.json")
	if err := os.WriteFile(list, overlay, 0o600); err != nil {
		return "", err
	}
	program := filepath.Join(filepath.Dir(string(binary)), "step-csi-skewed")
	build := exec.Command("go", "build", "-overlay", list, "-tags", "nobadger,nobbolt,nomysql,nopgx", "-o", program, "github.com/flexstack/step-csi/cmd/step-csi")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build step-csi with another time.Now: %w: %s", err, out)
	}
	return node.Binary(program), nil
})

// skew makes the node's clock differ from that of the CA, which is the machine's.
func skew(n *node.Node, ahead time.Duration) {
	n.T.Helper()
	skewed, err := skewedBinary()
	node.Must(n.T, err)
	n.Binary = skewed
	n.Env = append(n.Env, fmt.Sprintf("%s=%d", skewVariable, int(ahead/time.Second)))
}

// startAgedCA starts a step-ca whose root and intermediate are some days old.
func startAgedCA(t *testing.T) *realca.CA {
	t.Helper()
	ca := startRealCA(t)
	pki := ca.PKI()
	sign := func(certificate *x509.Certificate, parent *x509.Certificate, pki *minica.CA) *x509.Certificate {
		template := *certificate
		template.NotBefore, template.NotAfter = time.Now().Add(-72*time.Hour), time.Now().Add(72*time.Hour)
		der, err := x509.CreateCertificate(rand.Reader, &template, parent, certificate.PublicKey, pki.RootSigner)
		node.Must(t, err)
		signed, err := x509.ParseCertificate(der)
		node.Must(t, err)
		return signed
	}
	pki.Root = sign(pki.Root, pki.Root, pki)
	pki.Intermediate = sign(pki.Intermediate, pki.Root, pki)
	ca.Stop()
	for name, certificate := range map[string]*x509.Certificate{"root_ca_0.crt": pki.Root, "intermediate_ca.crt": pki.Intermediate} {
		_, err := pemutil.Serialize(certificate, pemutil.ToFile(filepath.Join(filepath.Dir(ca.ConfigFile()), name), 0o600))
		node.Must(t, err)
	}
	node.Must(t, ca.Resume())
	return ca
}

// A node's clock may be two minutes ahead of the CA's or behind, also right after a restart
// of the CA. Beyond that, the errors state the difference. A certificate is not mounted
// before it is valid on the node.
func TestSkewedClocks(t *testing.T) {
	t.Parallel()
	const waiting = "The certificate is not valid yet; waiting until it is"
	for name, test := range map[string]struct {
		ahead   time.Duration
		waits   bool
		code    codes.Code
		refused string // matches the error of the publish
	}{
		"two minutes ahead":   {2 * time.Minute, false, codes.OK, ""},
		"two minutes behind":  {-2 * time.Minute, true, codes.OK, ""},
		"four minutes behind": {-4 * time.Minute, false, codes.Unavailable, `too late for this call: the clock of the CA is [34]m\d+s ahead of this machine's`},
		"ten minutes behind":  {-10 * time.Minute, false, codes.Unavailable, `not yet valid.*\(the clock of the CA is (9|10)m\d+s ahead of this machine's: synchronize the clocks\)`},
		"ten minutes ahead":   {10 * time.Minute, false, codes.PermissionDenied, `\(the clock of the CA is (9|10)m\d+s behind this machine's: synchronize the clocks\)`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ca := startAgedCA(t)
			n := node.New(t, binary, ca)
			skew(n, test.ahead)
			n.Launch()
			n.WaitServing()
			ca.Stop()
			node.Must(t, ca.Resume())
			p := node.Pod{Name: "web-0", Attributes: map[string]string{"service-names": "web", "revoke-on-delete": "true"}}
			if test.code != codes.OK {
				err := n.TryPublish(p)
				if status.Code(err) != test.code || !regexp.MustCompile(test.refused).MatchString(fmt.Sprint(err)) {
					t.Errorf("got %v, want %s with %q", err, test.code, test.refused)
				}
				n.ExpectGone(p)
				return
			}
			n.Publish(p)
			leaf := read(t, n.Target(p)).leaf()
			if early := time.Until(leaf.NotBefore) - test.ahead; early > 0 {
				t.Errorf("the certificate was mounted %s before it is valid on the node", early)
			}
			n.Unpublish(p)
			node.Eventually(t, time.Minute, "the line of the publish, which comes after "+waiting, func() bool { return n.Logs.Has(logs.CallSucceeded) })
			if n.Logs.Has(waiting) != test.waits {
				t.Errorf("the log says %q: %v, want %v", waiting, !test.waits, test.waits)
			}
			serial := leaf.SerialNumber.String()
			node.Eventually(t, time.Minute, "the revocation", func() bool { return strings.Contains(revoked(t, ca), serial) })
		})
	}
	t.Run("registration authority 100 s behind", func(t *testing.T) {
		t.Parallel()
		r := startAuthority(t, startAgedCA(t), 1, "")
		n := r.prepareNode()
		skew(n, -100*time.Second)
		n.Start()
		p := node.Pod{Name: "web-0", Attributes: map[string]string{"service-names": "web"}}
		r.admit(p)
		n.Publish(p)
		if early := time.Until(read(t, n.Target(p)).leaf().NotBefore) + 100*time.Second; early > 0 {
			t.Errorf("the certificate was mounted %s before it is valid on the node", early)
		}
		node.Eventually(t, time.Minute, "the log says "+waiting+" and how the clocks differ", func() bool {
			return n.Logs.Has(waiting) && n.Logs.Has("the clock of the registration authority is 1m")
		})
		n.Unpublish(p)

		late := node.Pod{Name: "late-0", Attributes: map[string]string{"service-names": "late"}}
		r.reviews.Set(jwt(late.ID()), statusExpired)
		err := n.TryPublish(late)
		if !regexp.MustCompile(`token has expired \(the clocks of the API server and of this machine agree\).*the clock of the registration authority is 1m\d+s ahead of this machine's`).MatchString(fmt.Sprint(err)) {
			t.Errorf("an expired token of the pod: %v", err)
		}
	})
}
