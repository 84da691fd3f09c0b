package programs

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.step.sm/crypto/pemutil"

	"github.com/flexstack/step-csi/test/loopback"
	"github.com/flexstack/step-csi/test/node"
)

// peer is a program of testdata that is a TLS server and a TLS client. It greets each
// client by the names in the client's certificate, and finds new files without help.
type peer struct {
	section  string // of docs/programs.md, which shows parts of the program
	language string // of the section's blocks of code
	source   string // the name of the file in testdata
	// program returns the command that runs the source, which is at that path. Its
	// arguments are "server" or "client", the directory of the volume, the files, the
	// port, and for a client the server's name.
	program func(t testing.TB, source string) []string
	files   []string
	// volume are the attributes of the section; the first ones, if nil.
	volume map[string]string
	// mistrust matches the error of a client if the server's certificate is of another CA,
	// and misnamed if it has another name.
	mistrust, misnamed string
}

// refused matches the error of a client in Go that the server refuses.
const refused = `(?:remote error: tls: |EOF|connection reset|broken pipe).*`

func (p peer) test(t *testing.T) {
	t.Parallel()
	page := documented(t, p.section)
	page.shows(p.language, p.source)
	if p.volume == nil {
		p.volume = page.attributes(0)
	}
	as := account{uid: 10001, fsGroup: 10001}
	program := p.program(t, readable(t, p.source))
	s := server{
		section: p.section,
		as:      as, volume: p.volume,
		clientAs: as, clientVolume: p.with("service-names", "client"),
		start: func(s *site) {
			s.run(slices.Concat(program, []string{"server", s.tls.path}, p.files, []string{s.port})...)
		},
		shows: func(s *site, client *volume) (*x509.Certificate, error) { return s.greeted(client, nil) },
		use: func(s *site, client *volume) error {
			asks := func(name string) (string, error) {
				return s.asClient(slices.Concat(program, []string{"client", client.path}, p.files, []string{s.port, name})...)
			}
			_, admitted := s.greeted(client, nil)
			answer, err := asks(s.host)
			if (err == nil) != (admitted == nil) {
				return fmt.Errorf("one of both clients is refused: %w", errors.Join(admitted, err))
			}
			if err != nil {
				return errors.Join(admitted, err)
			}
			serial, _ := new(big.Int).SetString(strings.TrimSpace(after(answer, "serial ")), 16)
			if serial == nil || serial.Cmp(s.tls.leaf().SerialNumber) != 0 || !strings.Contains(after(answer, "hello "), client.host()) {
				t.Errorf("the client prints %q, want a greeting of %s and the serial number %x", answer, client.host(), s.tls.leaf().SerialNumber)
			}
			if _, err := asks("other." + s.host); err == nil || !matches(p.misnamed, err) {
				t.Errorf("with another name for the server, the error does not match %q: %v", p.misnamed, err)
			}
			return nil
		},
		refusal: `(?s)` + refused + p.mistrust,
	}.test(t)
	s.neverRefuses()
	s.followsRemoval()
}

// after returns the rest of the line after its prefix.
func after(text, prefix string) string {
	for line := range strings.Lines(text) {
		if rest, found := strings.CutPrefix(line, prefix); found {
			return rest
		}
	}
	return ""
}

func (p peer) with(key, value string) map[string]string {
	return node.Pod{Attributes: p.volume}.With(key, value).Attributes
}

// readable copies a file of testdata to where all users can read it. Each test has a directory
// of its own, because tests that run at the same time compile and run programs there.
func readable(t testing.TB, source string) (path string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", source))
	node.Must(t, err)
	directory, err := os.MkdirTemp(filepath.Dir(string(binary)), "source-")
	node.Must(t, err)
	node.Must(t, os.Chmod(directory, 0o755))
	path = filepath.Join(directory, source)
	node.Must(t, os.WriteFile(path, text, 0o644))
	return path
}

// shows checks that the section's blocks of code are parts of the program.
func (s section) shows(language, source string) {
	s.t.Helper()
	program, err := os.ReadFile(filepath.Join("testdata", source))
	node.Must(s.t, err)
	shown := 0
	for _, b := range s.blocks {
		if b.language != language {
			continue
		}
		shown++
		if !strings.Contains(string(program), b.text) {
			s.t.Errorf("docs/programs.md: testdata/%s does not have this block of %s:\n%s", source, s.title, b.text)
		}
	}
	if shown == 0 {
		s.t.Errorf("docs/programs.md: %s shows no part of testdata/%s", s.title, source)
	}
}

// greeted connects as a client in Go with the volume's certificate, which it sends
// whichever CAs the server names. It returns the server's certificate. It is an error if
// the server does not greet the client.
func (s *site) greeted(client *volume, sessions tls.ClientSessionCache) (*x509.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(client.file("tls.crt"), client.file("tls.key"))
	if err != nil {
		return nil, err
	}
	roots, err := os.ReadFile(s.client.file("ca.crt"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(roots)
	dialer := &net.Dialer{Timeout: time.Minute}
	connection, err := tls.DialWithDialer(dialer, "tcp", net.JoinHostPort(loopback.IP, s.port), &tls.Config{
		RootCAs: pool, ServerName: s.host, ClientSessionCache: sessions,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil },
	})
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	if err := connection.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return nil, err
	}
	greeting, err := bufio.NewReader(connection).ReadString('\n')
	if err == nil && !strings.HasPrefix(greeting, "hello ") {
		err = fmt.Errorf("the greeting is %q", greeting)
	}
	return connection.ConnectionState().PeerCertificates[0], err
}

// neverRefuses renews the server's certificate again and again while clients connect.
func (s *site) neverRefuses() {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.t.Context())
	var clients sync.WaitGroup
	var greetings atomic.Int64
	for range 2 {
		clients.Go(func() {
			for ctx.Err() == nil {
				if _, err := s.greeted(s.client, nil); err != nil {
					s.t.Errorf("during renewals, %s refuses a client: %v", s.section, err)
					return
				}
				greetings.Add(1)
			}
		})
	}
	defer clients.Wait()
	defer cancel()
	for range 10 {
		s.tls.renew()
		enough := greetings.Load() + 4
		node.Eventually(s.t, time.Minute, s.section+" greets clients", func() bool { return s.t.Failed() || greetings.Load() >= enough })
	}
}

// followsRemoval checks that the running server admits clients of another CA as soon as the
// volume has its root, and refuses them when the volume no longer has it, also if they
// resume a session.
func (s *site) followsRemoval() {
	s.t.Helper()
	s.tls.trustOther()
	sessions := tls.NewLRUClientSessionCache(1)
	for range 2 {
		if _, err := s.greeted(s.stranger, sessions); err != nil {
			s.t.Errorf("%s refuses a client of a new root: %v", s.section, err)
		}
	}
	node.Must(s.t, s.pods.ca.SetFederated())
	node.Eventually(s.t, time.Minute, s.section+"'s volume has one root again", func() bool {
		roots, err := pemutil.ReadCertificateBundle(s.tls.file("ca.crt"))
		return err == nil && len(roots) == 1
	})
	node.Eventually(s.t, 2*time.Minute, s.section+" refuses the client of the root that was removed", func() bool {
		_, err := s.greeted(s.stranger, sessions)
		return err != nil && matches(refused, err)
	})
	if !s.process.running() {
		s.t.Errorf("%s has ended: %s", s.section, s.process.ProcessState)
	}
}

func TestPython(t *testing.T) {
	peer{
		section: "Python", language: "python", source: "peer.py",
		program:  func(_ testing.TB, source string) []string { return []string{"/usr/bin/python3", source} },
		mistrust: "CERTIFICATE_VERIFY_FAILED", misnamed: "Hostname mismatch",
	}.test(t)
}

func TestNodeJS(t *testing.T) {
	peer{
		section: "Node.js", language: "js", source: "peer.js",
		program:  func(_ testing.TB, source string) []string { return []string{"node", source} },
		mistrust: "self.signed certificate|unable to", misnamed: "does not match certificate's altnames",
	}.test(t)
}

func TestGo(t *testing.T) {
	peer{
		section: "Go", language: "go", source: "peer.go",
		program: func(t testing.TB, source string) []string {
			program := filepath.Join(filepath.Dir(source), "peer")
			if out, err := exec.Command("go", "build", "-o", program, source).CombinedOutput(); err != nil {
				t.Fatalf("build peer.go: %v\n%s", err, out)
			}
			return []string{program}
		},
		mistrust: "certificate signed by unknown authority", misnamed: "certificate is valid for .*, not other",
	}.test(t)
}
