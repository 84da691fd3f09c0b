package programs

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/flexstack/step-csi/test/node"
)

// process is a program that runs until the test ends.
type process struct {
	*exec.Cmd
	log   *node.Log
	ended chan struct{}
}

// start starts a program in the directory as that user. The end of the test stops it and
// its children: first by the signal, or SIGTERM, and after a minute by SIGKILL.
func start(t testing.TB, as account, directory string, signal syscall.Signal, args ...string) *process {
	t.Helper()
	p := &process{Cmd: command(t, as, directory, args...), log: &node.Log{}, ended: make(chan struct{})}
	p.Stdout, p.Stderr = p.log, p.log
	p.SysProcAttr.Setpgid = true
	node.Must(t, p.Start())
	go func() {
		defer close(p.ended)
		_ = p.Wait()
	}()
	t.Cleanup(func() {
		if p.running() && signal != 0 {
			_ = p.Process.Signal(signal)
		} else if p.running() {
			_ = p.Process.Signal(syscall.SIGTERM)
		}
		select {
		case <-p.ended:
		case <-time.After(time.Minute):
			t.Errorf("%s does not end", args[0])
		}
		_ = syscall.Kill(-p.Process.Pid, syscall.SIGKILL)
		<-p.ended
		if t.Failed() {
			t.Logf("the output of %s ends with:\n%s", args[0], p.log.Tail(200))
		}
	})
	return p
}

func (p *process) running() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// run runs a program in the directory as that user, to its end, or kills it
// after two minutes. The error has its output.
func run(t testing.TB, as account, directory string, args ...string) (stdout string, err error) {
	t.Helper()
	c := command(t, as, directory, args...)
	var out, all bytes.Buffer
	c.Stdout, c.Stderr = &out, &all
	c.WaitDelay = 10 * time.Second // for children that have its output
	node.Must(t, c.Start())
	late := time.AfterFunc(2*time.Minute, func() { _ = c.Process.Kill() })
	defer late.Stop()
	if err := c.Wait(); err != nil {
		return out.String(), fmt.Errorf("%q: %w\n%s%s", args, err, out.String(), all.String())
	}
	return out.String(), nil
}

// mustRun is run for a program that must succeed.
func mustRun(t testing.TB, as account, directory string, args ...string) (stdout string) {
	t.Helper()
	stdout, err := run(t, as, directory, args...)
	node.Must(t, err)
	return stdout
}

// command has an environment without the machine's settings. HOME is the directory, and the
// PATH has step-csi-reload.
func command(t testing.TB, as account, directory string, args ...string) *exec.Cmd {
	t.Helper()
	addUser(t, as)
	node.Must(t, buildReload())
	c := exec.Command("env", args...) // which looks for the program in this PATH
	c.Dir = directory
	c.Env = []string{"PATH=" + filepath.Dir(string(binary)) + ":/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME=" + directory, "TMPDIR=" + directory, "LC_ALL=C.UTF-8"}
	c.SysProcAttr = &syscall.SysProcAttr{Credential: as.credential()}
	return c
}

var users sync.Mutex // guards /etc/passwd

// addUser names the user in /etc/passwd, where some programs look for themselves.
func addUser(t testing.TB, a account) {
	t.Helper()
	users.Lock()
	defer users.Unlock()
	id := strconv.Itoa(int(a.uid))
	if _, err := user.LookupId(id); err != nil {
		appendLine(t, "/etc/passwd", fmt.Sprintf("user%s:x:%s:%s::/nonexistent:/usr/sbin/nologin", id, id, id))
	}
}

// installed returns the path of the last of the files that the pattern matches: a program
// that is not on the PATH, in its newest version.
func installed(t testing.TB, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(pattern)
	node.Must(t, err)
	if len(found) == 0 {
		t.Fatalf("%s is not installed; test/setup.sh installs it", pattern)
	}
	return found[len(found)-1]
}

// write writes a file of that user's.
func write(t testing.TB, as account, path, text string) {
	t.Helper()
	node.Must(t, os.WriteFile(path, []byte(text), 0o600))
	node.Must(t, os.Chown(path, int(as.uid), int(as.uid)))
}
