// Package realca builds the real step-ca program from a separate module, and runs it as
// a process with files and a database, on loopback.
package realca

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"go.step.sm/crypto/jose"
	"go.step.sm/crypto/minica"
	"go.step.sm/crypto/pemutil"

	"github.com/flexstack/step-csi/test/loopback"
)

// CA is a running step-ca with one JWK provisioner, see Provisioner. Lifetimes are
// step-ca's defaults, except for the minimum of one second, because tests wait for
// renewals.
type CA struct {
	program   string
	address   string
	directory string
	pki       *minica.CA // as set up by Start
	database  map[string]any
	process   *exec.Cmd
	log       bytes.Buffer
}

// Build builds step-ca into the directory, and returns its path.
func Build(directory string) (program string, err error) {
	return build(directory, "step-ca", "github.com/smallstep/certificates/cmd/step-ca")
}

// BuildCLI builds the command step into the directory, and returns its path.
func BuildCLI(directory string) (program string, err error) {
	return build(directory, "step", "github.com/smallstep/cli/cmd/step")
}

func build(directory, name, source string) (program string, err error) {
	program = filepath.Join(directory, name)
	build := exec.Command("go", "build", "-trimpath", "-o", program, source)
	// The program's module is in a directory of this package.
	_, here, _, _ := runtime.Caller(0)
	build.Dir = filepath.Join(filepath.Dir(here), "module")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // with cgo, step-ca needs a smart card library
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", name, err, out)
	}
	return program, nil
}

// Start sets up a CA below the directory, as `step ca init` does, and waits until
// the program listens.
func Start(program, directory string) (*CA, error) {
	return StartAt(program, directory, loopback.IP)
}

// StartAt is Start at another address than 127.0.0.1.
func StartAt(program, directory, address string) (*CA, error) {
	return start(program, directory, address, map[string]any{"type": "badgerv2", "dataSource": DatabaseDirectory(directory)})
}

// StartWith is Start with another database: "db" in ca.json.
func StartWith(program, directory string, database map[string]any) (*CA, error) {
	return start(program, directory, loopback.IP, database)
}

func start(program, directory, address string, database map[string]any) (*CA, error) {
	pki, err := minica.New(minica.WithName("Real"))
	if err != nil {
		return nil, err
	}
	ca := &CA{program: program, pki: pki, directory: directory, database: database}
	if ca.address, err = loopback.Address(address); err != nil {
		return nil, err
	}
	if err := ca.write(); err != nil {
		return nil, err
	}
	return ca, ca.Resume()
}

// Resume starts the process again, after Stop or Kill.
func (ca *CA) Resume() error {
	// step-ca listens before it catches SIGHUP. Until then, it ignores the signal: see
	// catchesHangUps.
	ca.process = exec.Command("sh", "-c", `trap '' HUP; exec "$0" "$@"`, ca.program, ca.path("ca.json"))
	ca.process.Stdout, ca.process.Stderr = &ca.log, &ca.log
	if err := ca.process.Start(); err != nil {
		return err
	}
	return ca.wait()
}

func (ca *CA) path(name string) string { return filepath.Join(ca.directory, name) }

// write writes the same files as `step ca init`.
func (ca *CA) write() error {
	name, password := ca.Provisioner()
	key, encrypted, err := jose.GenerateDefaultKeyPair([]byte(password))
	if err != nil {
		return err
	}
	sealed, err := encrypted.CompactSerialize()
	if err != nil {
		return err
	}
	host, _, err := net.SplitHostPort(ca.address)
	if err != nil {
		return err
	}
	data, err := json.Marshal(map[string]any{
		"root": []string{ca.path("root_ca_0.crt")}, "crt": ca.path("intermediate_ca.crt"), "key": ca.path("intermediate_ca_key"),
		"address": ca.address, "dnsNames": []string{host},
		"db":  ca.database,
		"crl": map[string]any{"enabled": true, "generateOnRevoke": true},
		"authority": map[string]any{"provisioners": []any{map[string]any{
			"type": "JWK", "name": name, "key": key, "encryptedKey": sealed,
			"claims": map[string]any{"minTLSCertDuration": "1s"},
		}}},
	})
	if err != nil {
		return err
	}
	return errors.Join(os.WriteFile(ca.path("ca.json"), data, 0o600), ca.writePKI(ca.pki, nil, ca.pki.Root))
}

// writePKI writes the intermediate that signs, with its key and the rest of its chain, and the
// roots.
func (ca *CA) writePKI(signing *minica.CA, chain []*x509.Certificate, roots ...*x509.Certificate) error {
	var bundle []byte
	for _, c := range append([]*x509.Certificate{signing.Intermediate}, chain...) {
		bundle = append(bundle, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	if err := os.WriteFile(ca.path("intermediate_ca.crt"), bundle, 0o600); err != nil {
		return err
	}
	files := map[string]any{"intermediate_ca_key": signing.Signer}
	for i, root := range roots {
		files[fmt.Sprintf("root_ca_%d.crt", i)] = root
	}
	for name, value := range files {
		if _, err := pemutil.Serialize(value, pemutil.ToFile(ca.path(name), 0o600)); err != nil {
			return err
		}
	}
	return nil
}

// PKI returns the PKI that Start made.
func (ca *CA) PKI() *minica.CA { return ca.pki }

// Serve makes the CA sign with another intermediate and return other roots, like an
// administrator: with new files, a line in ca.json, and SIGHUP.
func (ca *CA) Serve(signing *minica.CA, roots ...*x509.Certificate) error {
	return ca.ServeChain(signing, nil, roots...)
}

// ServeChain is Serve with more certificates after the intermediate, such as cross-signed ones.
func (ca *CA) ServeChain(signing *minica.CA, chain []*x509.Certificate, roots ...*x509.Certificate) error {
	if err := ca.writePKI(signing, chain, roots...); err != nil {
		return err
	}
	data, err := os.ReadFile(ca.path("ca.json"))
	if err != nil {
		return err
	}
	var config map[string]any
	if err := json.Unmarshal(data, &config); err != nil {
		return err
	}
	var files []string
	for i := range roots {
		files = append(files, ca.path(fmt.Sprintf("root_ca_%d.crt", i)))
	}
	config["root"] = files
	if data, err = json.Marshal(config); err != nil {
		return err
	}
	if err := os.WriteFile(ca.path("ca.json"), data, 0o600); err != nil {
		return err
	}
	if err := ca.process.Process.Signal(syscall.SIGHUP); err != nil {
		return err
	}
	return ca.waitFor(signing.Intermediate, len(roots))
}

// waitFor waits until the CA shows the intermediate, which has signed its own certificate,
// and returns this number of roots.
func (ca *CA) waitFor(intermediate *x509.Certificate, roots int) (err error) {
	for start := time.Now(); time.Since(start) < 2*time.Minute; time.Sleep(20 * time.Millisecond) {
		if err = ca.shows(intermediate, roots); err == nil {
			return nil
		}
	}
	return fmt.Errorf("step-ca has not reloaded: %w", err)
}

func (ca *CA) shows(intermediate *x509.Certificate, roots int) error {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
	}}
	answer, err := client.Get(ca.URL() + "/roots")
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	var listed struct {
		Certificates []string `json:"crts"`
	}
	if err := json.NewDecoder(answer.Body).Decode(&listed); err != nil {
		return err
	}
	if n := len(listed.Certificates); n != roots {
		return fmt.Errorf("step-ca returns %d roots, want %d", n, roots)
	}
	if !slices.ContainsFunc(answer.TLS.PeerCertificates, intermediate.Equal) {
		return errors.New("step-ca shows another intermediate")
	}
	return answer.TLS.PeerCertificates[0].CheckSignatureFrom(intermediate)
}

func (ca *CA) wait() error {
	for start := time.Now(); time.Since(start) < 2*time.Minute; time.Sleep(10 * time.Millisecond) {
		connection, err := net.Dial("tcp", ca.address)
		if err != nil {
			continue
		}
		connection.Close()
		if catches, err := ca.catchesHangUps(); err != nil || catches {
			return err
		}
	}
	ca.Stop()
	return fmt.Errorf("step-ca does not listen:\n%s", ca.log.String())
}

// catchesHangUps tells whether SIGHUP reaches step-ca, and is not ignored any more.
func (ca *CA) catchesHangUps() (bool, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", ca.process.Process.Pid))
	if err != nil {
		return false, err
	}
	for line := range strings.Lines(string(status)) {
		if mask, found := strings.CutPrefix(line, "SigIgn:"); found {
			ignored, err := strconv.ParseUint(strings.TrimSpace(mask), 16, 64)
			return ignored&(1<<(syscall.SIGHUP-1)) == 0, err
		}
	}
	return false, errors.New("the status of the process has no line SigIgn")
}

// Reload makes the CA load ca.json again, with SIGHUP, and waits until it lists the
// provisioner as check wants it.
func (ca *CA) Reload(provisioner string, check func(entry map[string]any) bool) error {
	if err := ca.process.Process.Signal(syscall.SIGHUP); err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
	}}
	var err error
	for start := time.Now(); time.Since(start) < 2*time.Minute; time.Sleep(20 * time.Millisecond) {
		var answer *http.Response
		if answer, err = client.Get(ca.URL() + "/provisioners"); err != nil {
			continue
		}
		var list struct{ Provisioners []map[string]any }
		err = json.NewDecoder(answer.Body).Decode(&list)
		answer.Body.Close()
		for _, entry := range list.Provisioners {
			if entry["name"] == provisioner && check(entry) {
				return nil
			}
		}
	}
	return fmt.Errorf("step-ca has not reloaded: %w", errors.Join(err, errors.New("the provisioner "+provisioner+" is not as it should be")))
}

// ConfigFile is the path of ca.json.
func (ca *CA) ConfigFile() string { return ca.path("ca.json") }

// Stop ends the process.
func (ca *CA) Stop() { ca.end(syscall.SIGTERM) }

// Kill ends the process without warning.
func (ca *CA) Kill() { ca.end(syscall.SIGKILL) }

func (ca *CA) end(signal syscall.Signal) {
	err := ca.process.Process.Signal(signal)
	if !errors.Is(err, os.ErrProcessDone) {
		_ = ca.process.Wait()
	}
}

// DatabaseDirectory returns the directory of the database.
func DatabaseDirectory(directory string) string { return filepath.Join(directory, "db") }

// Log returns the output of the process. Call it after Stop.
func (ca *CA) Log() string { return ca.log.String() }

// URL of the CA.
func (ca *CA) URL() string { return "https://" + ca.address }

// Provisioner returns the name and the password of the JWK provisioner.
func (*CA) Provisioner() (name, password string) { return "admin", "password" }

// Root is the CA's root certificate.
func (ca *CA) Root() *x509.Certificate { return ca.pki.Root }

// RootPEM is the CA's root certificate in PEM.
func (ca *CA) RootPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.pki.Root.Raw})
}

// Fingerprint is the SHA-256 of the root in hexadecimal.
func (ca *CA) Fingerprint() string {
	sum := sha256.Sum256(ca.pki.Root.Raw)
	return hex.EncodeToString(sum[:])
}
