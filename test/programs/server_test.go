package programs

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/flexstack/step-csi/test/loopback"
	"github.com/flexstack/step-csi/test/node"
)

// server is a program that serves TLS with the files of a volume, and admits only clients
// with a certificate of the same CA.
type server struct {
	section string // of docs/programs.md

	as     account           // who the server runs as
	volume map[string]string // the attributes of its volume

	clientAs     account
	clientVolume map[string]string

	// start writes what the server needs, such as its configuration, and starts it with
	// site.run. The harness waits until the server listens.
	start func(s *site)
	// stop is the signal that stops the server; SIGTERM, if zero.
	stop syscall.Signal
	// starttls is the protocol in which the server changes to TLS, as openssl s_client
	// names it. It is empty if connections begin with TLS.
	starttls string
	// shows returns the certificate that the server shows to a client. It is nil if openssl
	// s_client can find out.
	shows func(s *site, client *volume) (*x509.Certificate, error)
	// reload has the server read the files again, as the page says. It is nil if the
	// server finds new files itself, or through step-csi-reload.
	reload func(s *site)
	// followsRoots is true if the server then trusts new roots of its volume, too.
	followsRoots bool
	// use does one thing with the server over a new connection, with a client's files. It
	// checks the server's name, and is an error if the server refuses the client.
	use func(s *site, client *volume) error
	// refusal matches the error if the client's certificate is of another CA. denial
	// matches it if the certificate is of the same CA, with another name than the
	// client's; it is empty if the server admits all names.
	refusal, denial string
}

// cutOff matches the errors of clients that a server with TLS 1.3 refuses. The server
// verifies the client's certificate when the client has already sent a request, so the
// client sees the server's alert or a closed connection, whichever comes first.
const cutOff = "(?i)alert unknown ca|connection reset|broken pipe|closed the connection|lost connection"

// site is a server in its pod, and its clients.
type site struct {
	server
	t         testing.TB
	pods      *pods
	directory string // of the server's user
	tls       *volume
	host      string // the server's name, which resolves to 127.0.0.1
	port      string
	process   *process

	clientDirectory string
	client          *volume // a peer's
	stranger        *volume // with the peer's names, of another CA
	neighbor        *volume // with another name, of the same CA
}

// newSite publishes the volumes, and starts the server.
func newSite(t testing.TB, of server) *site {
	t.Helper()
	w := newPods(t)
	s := &site{server: of, t: t, pods: w, directory: w.directory(of.as), clientDirectory: w.directory(of.clientAs)}
	s.tls = w.publish(of.as.pod("server-0", of.volume))
	s.client = w.publish(of.clientAs.pod("client-0", of.clientVolume))
	s.stranger = w.publish(of.clientAs.pod("stranger-0", of.clientVolume).With("issuer", "other"))
	s.neighbor = w.publish(of.clientAs.pod("neighbor-0", of.clientVolume).With("service-names", "neighbor"))
	s.host = s.tls.host()
	addHost(t, s.host)
	address, err := loopback.Address(loopback.IP)
	node.Must(t, err)
	_, s.port, err = net.SplitHostPort(address)
	node.Must(t, err)
	s.start(s)
	s.waitListening()
	return s
}

var hosts sync.Mutex // guards /etc/hosts

func addHost(t testing.TB, name string) {
	t.Helper()
	hosts.Lock()
	defer hosts.Unlock()
	if addresses, err := net.LookupHost(name); err != nil || addresses[0] != loopback.IP {
		appendLine(t, "/etc/hosts", loopback.IP+" "+name)
	}
}

// run starts the server's program.
func (s *site) run(args ...string) {
	s.t.Helper()
	s.process = start(s.t, s.as, s.directory, s.stop, args...)
}

// shell runs a command of the page, with more arguments.
func shell(command string, more ...string) []string {
	command = strings.Replace(strings.TrimSpace(command), "step-csi-reload ", "step-csi-reload --debounce 100ms ", 1)
	return append([]string{"sh", "-c", "exec " + command + ` "$@"`, "sh"}, more...)
}

// of is the nth block of the page in that language, for a client. All clients trust the
// server's CA.
func (s *site) of(client *volume, page section, language string, n int, oldnew ...string) string {
	return page.code(language, n, client.path, append(oldnew, "/etc/tls/ca.crt", s.client.file("ca.crt"))...)
}

func (s *site) waitListening() {
	s.t.Helper()
	node.Eventually(s.t, 2*time.Minute, s.section+" listens", func() bool {
		if s.process != nil && !s.process.running() {
			s.t.Fatalf("%s has ended: %s", s.section, s.process.ProcessState)
		}
		connection, err := net.DialTimeout("tcp", net.JoinHostPort(loopback.IP, s.port), 10*time.Second)
		if err == nil {
			connection.Close()
		}
		return err == nil
	})
}

// asClient runs a program as the client's user.
func (s *site) asClient(args ...string) (stdout string, err error) {
	s.t.Helper()
	return run(s.t, s.clientAs, s.clientDirectory, args...)
}

// shown returns the certificate that the server shows to a client, as openssl s_client
// sees it, or shows, if it is set. It is an error if the server's chain or name is wrong.
func (s *site) shown(client *volume) (*x509.Certificate, error) {
	s.t.Helper()
	if s.shows != nil {
		return s.shows(s, client)
	}
	args := []string{"openssl", "s_client", "-connect", net.JoinHostPort(loopback.IP, s.port),
		"-servername", s.host, "-verify_hostname", s.host, "-verify_return_error", "-CAfile", s.client.file("ca.crt"),
		"-cert", client.file("tls.crt"), "-cert_chain", client.file("tls.crt"), "-key", client.file("tls.key")}
	if s.starttls != "" {
		args = append(args, "-starttls", s.starttls)
	}
	out, err := run(s.t, account{}, s.clientDirectory, args...) // root, who can read each key
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode([]byte(out[max(0, strings.Index(out, "-----BEGIN")):]))
	if block == nil {
		return nil, errors.New("openssl s_client prints no certificate:\n" + out)
	}
	return x509.ParseCertificate(block.Bytes)
}

// serves waits until the server shows the volume's certificate to new connections, and
// then uses it as each client.
func (s *site) serves(when string) {
	s.t.Helper()
	want := s.tls.leaf()
	var last error
	node.Eventually(s.t, 2*time.Minute, when+", "+s.section+" shows the certificate with the serial number "+want.SerialNumber.String(), func() bool {
		got, err := s.shown(s.client)
		if err == nil && !bytes.Equal(got.Raw, want.Raw) {
			err = fmt.Errorf("%s shows the certificate with the serial number %s", s.section, got.SerialNumber)
		}
		if err != nil && (last == nil || err.Error() != last.Error()) {
			last = err
			s.t.Log(err)
		}
		return err == nil
	})
	if err := s.use(s, s.client); err != nil {
		s.t.Errorf("%s, %s refuses a peer: %v", when, s.section, err)
	}
	s.refuses(when, s.stranger, s.refusal)
	if s.denial != "" {
		s.refuses(when, s.neighbor, s.denial)
	}
}

// refuses checks that the server refuses this client, with an error that matches.
func (s *site) refuses(when string, client *volume, matching string) {
	s.t.Helper()
	switch err := s.use(s, client); {
	case err == nil:
		s.t.Errorf("%s, %s admits %s, which has the names %q of %q", when, s.section, client.pod.Name, client.leaf().DNSNames, client.leaf().Issuer)
	case !matches(matching, err):
		s.t.Errorf("%s, the error of %s does not match %q: %v", when, client.pod.Name, matching, err)
	}
}

func matches(pattern string, err error) bool {
	return regexp.MustCompile(pattern).MatchString(err.Error())
}

// test starts the server, connects, renews all certificates, and connects again. The
// process stays the same.
func (of server) test(t testing.TB) *site {
	t.Helper()
	s := newSite(t, of)
	s.serves("at the start")
	for _, when := range []string{"after a renewal", "after a second renewal"} {
		s.tls.renew()
		s.client.renew()
		s.stranger.renew()
		if s.reload != nil {
			s.reload(s)
		}
		s.serves(when)
	}
	if s.followsRoots {
		s.tls.trustOther()
		if s.reload != nil {
			s.reload(s)
		}
		node.Eventually(t, 2*time.Minute, s.section+" admits clients of a new root", func() bool { return s.use(s, s.stranger) == nil })
	}
	if s.process != nil && !s.process.running() {
		t.Errorf("%s has ended: %s", s.section, s.process.ProcessState)
	}
	return s
}
