package integration

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/flexstack/step-csi/test/logs"
	"github.com/flexstack/step-csi/test/node"
)

// serverOf names the environment variable that turns the test's binary into a TLS
// server. The server does not watch its files: it reads them at the start and at
// each SIGHUP.
const serverOf = "STEP_CSI_TEST_SERVER_OF"

// runServer runs that server. It prints the signals that it receives.
func runServer(directory string) {
	load := func() *tls.Certificate {
		// Both files are of one set, also if a renewal replaces it now.
		set, err := filepath.EvalSymlinks(filepath.Join(directory, "..data"))
		if err != nil {
			panic(err)
		}
		pair, err := tls.LoadX509KeyPair(filepath.Join(set, "tls.crt"), filepath.Join(set, "tls.key"))
		if err != nil {
			panic(err)
		}
		return &pair
	}
	pair := load()
	signals := make(chan os.Signal, 1000) // more than the Go runtime sends during a handshake
	signal.Notify(signals)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Println("serving", listener.Addr())
	handshakes := make(chan net.Conn)
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				panic(err)
			}
			handshakes <- connection
		}
	}()
	for {
		select {
		case connection := <-handshakes:
			_ = tls.Server(connection, &tls.Config{Certificates: []tls.Certificate{*pair}}).Handshake()
			connection.Close()
		case s := <-signals:
			switch s {
			case syscall.SIGURG: // the Go runtime sends itself SIGURG
				continue
			case syscall.SIGHUP:
				pair = load()
			case syscall.SIGTERM:
				fmt.Println("got", s)
				os.Exit(7)
			}
			fmt.Println("got", s)
		}
	}
}

// buildReload builds step-csi-reload once for all tests, with the race detector
// where a C compiler is available.
var buildReload = sync.OnceValues(func() (string, error) {
	path := filepath.Join(filepath.Dir(string(binary)), "step-csi-reload")
	args := []string{"build", "-o", path}
	if cgo, err := exec.Command("go", "env", "CGO_ENABLED").Output(); err == nil && strings.TrimSpace(string(cgo)) == "1" {
		args = append(args, "-race")
	}
	out, err := exec.Command("go", append(args, "../../cmd/step-csi-reload")...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("build step-csi-reload: %w\n%s", err, out)
	}
	return path, err
})

// reloadCommand returns a step-csi-reload that has not started.
func reloadCommand(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	path, err := buildReload()
	node.Must(t, err)
	return exec.Command(path, args...)
}

// reloading is a running step-csi-reload.
type reloading struct {
	t       *testing.T
	process *exec.Cmd
	out     *node.Log
	ended   chan error
}

func startReload(t *testing.T, env string, args ...string) *reloading {
	t.Helper()
	r := &reloading{t: t, process: reloadCommand(t, args...), out: &node.Log{}, ended: make(chan error, 1)}
	r.process.Stdout, r.process.Stderr = r.out, r.out
	r.process.Env = append(os.Environ(), env)
	node.Must(t, r.process.Start())
	go func() { r.ended <- r.process.Wait() }()
	t.Cleanup(func() {
		_ = r.process.Process.Kill()
		if t.Failed() {
			t.Logf("step-csi-reload %q:\n%s", args, r.out)
		}
	})
	return r
}

// says waits until the output contains the text at least that many times.
func (r *reloading) says(times int, what string) {
	r.t.Helper()
	node.Eventually(r.t, time.Minute, what, func() bool { return strings.Count(r.out.String(), what) >= times })
}

func (r *reloading) signal(s syscall.Signal) {
	r.t.Helper()
	node.Must(r.t, r.process.Process.Signal(s))
}

// exits waits until the process ends and compares its exit status.
func (r *reloading) exits(status int) {
	r.t.Helper()
	select {
	case err := <-r.ended:
		var exit *exec.ExitError
		if got := r.process.ProcessState.ExitCode(); got != status || err != nil && !errors.As(err, &exit) {
			r.t.Errorf("exit status %d instead of %d: %v", got, status, err)
		}
	case <-time.After(time.Minute):
		r.t.Fatal("step-csi-reload does not exit")
	}
}

// A wrapped server serves the new certificate after each rotation, without a
// restart, and receives all other signals too.
func TestReloadWrapsAServer(t *testing.T) {
	t.Parallel()
	n := newNode(t, startCA(t))
	p := node.Pod{Name: "web-0", Attributes: map[string]string{"dns-names": "web.shop", "duration": "9s"}}
	target := n.Target(p)
	self, err := os.Executable()
	node.Must(t, err)
	r := startReload(t, serverOf+"="+target, "--dir", target, "--signal", "HUP", "--debounce", "100ms", "--", self)
	// step-csi-reload waits for the volume before it starts the server.
	r.says(1, logs.WaitingForFiles)
	n.Publish(p)
	r.says(1, "serving ")
	_, rest, _ := strings.Cut(r.out.String(), "serving ")
	address := strings.Fields(rest)[0]
	roots := read(t, target).roots
	for range 3 {
		first := shownAt(t, address, roots)
		node.Eventually(t, time.Minute, "the server serves a new certificate", func() bool { return !shownAt(t, address, roots).Equal(first) })
		node.Eventually(t, time.Minute, "the server serves the volume's certificate", func() bool { return shownAt(t, address, roots).Equal(read(t, target).leaf()) })
	}
	if started := strings.Count(r.out.String(), "serving "); started != 1 {
		t.Errorf("the server started %d times", started)
	}
	for s, name := range map[syscall.Signal]string{
		syscall.SIGUSR1: "user defined signal 1", syscall.SIGUSR2: "user defined signal 2",
		syscall.SIGINT: "interrupt", syscall.SIGQUIT: "quit", syscall.SIGWINCH: "window changed",
	} {
		r.signal(s)
		r.says(1, "got "+name)
	}
	r.signal(syscall.SIGTERM)
	r.exits(7)
	n.Unpublish(p)
}

// shownAt returns the certificate that the server shows, which may have expired on a slow
// machine.
func shownAt(t *testing.T, address string, roots *x509.CertPool) *x509.Certificate {
	t.Helper()
	connection, err := tls.Dial("tcp", address, &tls.Config{
		InsecureSkipVerify: true, // VerifyConnection does, with another time
		VerifyConnection: func(s tls.ConnectionState) error {
			return errors.Join(s.PeerCertificates[0].VerifyHostname("web.shop"), verify(s.PeerCertificates, roots))
		},
	})
	node.Must(t, err)
	defer connection.Close()
	return connection.ConnectionState().PeerCertificates[0]
}

// still returns a directory whose files do not change.
func still(t *testing.T) string {
	directory := t.TempDir()
	node.Must(t, os.WriteFile(filepath.Join(directory, "tls.crt"), nil, 0o600))
	return directory
}

func TestReloadExitsAsTheProgramDoes(t *testing.T) {
	t.Parallel()
	for script, status := range map[string]int{
		"exit 0": 0, "exit 3": 3, "exit 255": 255, "kill -KILL $$": 137, "kill -SEGV $$": 139, "kill -HUP $$": 129,
	} {
		startReload(t, "", "--dir", still(t), "--signal", "HUP", "--", "sh", "-c", script).exits(status)
	}
	r := startReload(t, "", "--dir", still(t), "--signal", "HUP", "--", "/no/such/program")
	r.exits(1)
	r.says(1, "/no/such/program: no such file or directory")
	// Until the files exist, step-csi-reload does not start the program.
	r = startReload(t, "", "--dir", "/no/such/directory", "--signal", "HUP", "--", "true")
	r.says(1, "missing=")
	r.signal(syscall.SIGTERM)
	r.exits(0)
	// step-csi-reload does not send a signal that would kill the program.
	directory := still(t)
	r = startReload(t, "", "--dir", directory, "--debounce", "10ms", "--signal", "HUP", "--", "sleep", "600")
	r.says(1, logs.Watching)
	node.Must(t, os.WriteFile(filepath.Join(directory, "tls.crt"), []byte("new"), 0o600))
	r.says(1, logs.UnhandledSignal)
	r.signal(syscall.SIGTERM)
	r.exits(143)
}

// As process 1 of a container, step-csi-reload reaps orphans, which would otherwise
// stay as zombies.
func TestReloadReapsOrphans(t *testing.T) {
	t.Parallel()
	r := &reloading{t: t, out: &node.Log{}, ended: make(chan error, 1)}
	r.process = reloadCommand(t, "--dir", still(t), "--signal", "HUP", "--", "sh", "-c",
		`i=0; while [ $i -lt 20 ]; do (sh -c 'sleep 0.2; exit 1' &); i=$((i+1)); done; echo orphaned; sleep 600`)
	r.process.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	r.process.Stdout, r.process.Stderr = r.out, r.out
	node.Must(t, r.process.Start())
	go func() { r.ended <- r.process.Wait() }()
	t.Cleanup(func() { _ = r.process.Process.Kill() })
	r.says(1, "orphaned")
	children := func() []string {
		pid := strconv.Itoa(r.process.Process.Pid)
		var all []string
		tasks, err := filepath.Glob("/proc/" + pid + "/task/*/children")
		node.Must(t, err)
		for _, task := range tasks {
			text, _ := os.ReadFile(task)
			all = append(all, strings.Fields(string(text))...)
		}
		return all
	}
	node.Eventually(t, time.Minute, "the program is the only child", func() bool { return len(children()) == 1 })
	r.signal(syscall.SIGTERM)
	r.exits(143)
}

// A sidecar signals a server that is not its child. It finds the server by a PID
// file, and then by its process name.
func TestReloadBesideAServer(t *testing.T) {
	t.Parallel()
	n := newNode(t, startCA(t))
	p := node.Pod{Name: "web-0", Attributes: map[string]string{"dns-names": "web.shop", "duration": "9s"}}
	n.Publish(p)
	target := n.Target(p)
	name := filepath.Join(t.TempDir(), "sidecar-test")
	self, err := os.Executable()
	node.Must(t, err)
	node.Must(t, os.Symlink(self, name))
	server, out := exec.Command(name), &node.Log{}
	server.Env, server.Stdout, server.Stderr = append(os.Environ(), serverOf+"="+target), out, out
	node.Must(t, server.Start())
	t.Cleanup(func() {
		_ = server.Process.Kill()
		_ = server.Wait()
	})
	node.Eventually(t, time.Minute, "the server listens", func() bool { return strings.Contains(out.String(), "serving ") })
	file := filepath.Join(t.TempDir(), "pid")
	node.Must(t, os.WriteFile(file, fmt.Appendf(nil, "%d\n", server.Process.Pid), 0o600))
	for i, to := range [][]string{{"--pid-file", file}, {"--process-name", "sidecar-test"}} {
		r := startReload(t, "", append([]string{"--dir", target, "--debounce", "10ms", "--signal", "HUP"}, to...)...)
		// step-csi-reload signals once when it starts, and once for the rotation.
		for reloads := range 2 {
			r.says(reloads+1, logs.Reloaded)
			node.Eventually(t, time.Minute, "the server receives the signal", func() bool { return strings.Count(out.String(), "got hangup") >= 2*i+reloads+1 })
		}
		r.signal(syscall.SIGTERM)
		r.exits(0)
	}
	n.Unpublish(p)
}

// A failing command runs again, and its error is logged. A command that succeeds
// runs once for each rotation.
func TestReloadRunsACommand(t *testing.T) {
	t.Parallel()
	n := newNode(t, startCA(t))
	p := node.Pod{Name: "web-0", Attributes: map[string]string{"duration": "9s"}}
	n.Publish(p)
	target := n.Target(p)
	mark := filepath.Join(t.TempDir(), "mark")
	r := startReload(t, "", "--dir", target, "--debounce", "10ms", "--exec", "--", "sh", "-c",
		`openssl x509 -noout -serial -in "$1/tls.crt"; test -e "$2" || { echo not yet; exit 4; }`, "sh", target, mark)
	r.says(2, `err="sh: exit status 4"`)
	node.Must(t, os.WriteFile(mark, nil, 0o600))
	r.says(1, logs.Reloaded)
	first := read(t, target).leaf()
	node.Eventually(t, time.Minute, "a renewal", func() bool { return !read(t, target).leaf().Equal(first) })
	// On a slow machine, the command may run after the next renewal.
	node.Eventually(t, time.Minute, "the command after a renewal", func() bool {
		return strings.Contains(r.out.String(), fmt.Sprintf("serial=%X", read(t, target).leaf().SerialNumber.Bytes()))
	})
	n.Unpublish(p)
	// The volume is unmounted, and then the next pod's volume is mounted.
	r.says(1, logs.WaitingForFiles)
	p.Attributes["duration"] = "1h"
	n.Publish(p)
	r.says(1, fmt.Sprintf("serial=%X", read(t, target).leaf().SerialNumber.Bytes()))
	r.signal(syscall.SIGTERM)
	r.exits(0)
	if strings.Contains(r.out.String(), "PRIVATE") {
		t.Error("the log contains a private key")
	}
	n.Unpublish(p)
}

func TestReloadUsage(t *testing.T) {
	t.Parallel()
	startReload(t, "", "--help").exits(0)
	for _, args := range [][]string{
		{"--signal", "HUP", "true"}, {"--dir", "/tls"}, {"--dir", "/tls", "--signal", "NONE", "true"}, {"--dir", "/tls", "--exec"},
		{"--dir", "/tls", "--url", "localhost"}, {"--dir", "/tls", "--signal", "HUP"}, {"--dir", "", "--signal", "HUP", "true"},
		{"--dir", "/tls", "--signal", "HUP", "--exec", "true"}, {"--dir", "/tls", "--url", "http://u:secret@h:x/"},
	} {
		r := startReload(t, "", args...)
		r.exits(2)
		if out := r.out.String(); !strings.HasPrefix(out, "step-csi-reload: ") || !strings.Contains(out, "Usage: step-csi-reload") || strings.Contains(out, "secret") {
			t.Errorf("%q: %s", args, out)
		}
	}
}
