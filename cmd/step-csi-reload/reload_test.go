package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// replace replaces all files of a volume at once, like a CSI driver.
func replace(t *testing.T, directory string, files map[string]string) {
	t.Helper()
	set, err := os.MkdirTemp(directory, "..set-")
	must(t, err)
	for name, text := range files {
		must(t, os.WriteFile(filepath.Join(set, name), []byte(text), 0o400))
		if _, err := os.Lstat(filepath.Join(directory, name)); err != nil {
			must(t, os.Symlink(dataLink+"/"+name, filepath.Join(directory, name)))
		}
	}
	must(t, os.Symlink(filepath.Base(set), filepath.Join(directory, "..data_tmp")))
	must(t, os.Rename(filepath.Join(directory, "..data_tmp"), filepath.Join(directory, dataLink)))
}

func TestContents(t *testing.T) {
	one, two := t.TempDir(), t.TempDir()
	read := func() digest {
		t.Helper()
		d, err := contents([]string{one, two})
		must(t, err)
		return d
	}
	replace(t, one, map[string]string{"tls.crt": "a", "tls.key": "b"})
	if _, err := contents([]string{one, two}); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), two) {
		t.Errorf("one directory is empty: %v", err)
	}
	replace(t, two, map[string]string{"ca.crt": "c"})
	first := read()
	replace(t, one, map[string]string{"tls.crt": "a", "tls.key": "b"})
	if read() != first {
		t.Error("a rewrite counts as a change")
	}
	for _, files := range []map[string]string{
		{"tls.crt": "a", "tls.key": "x"},
		{"tls.crt": "ab", "tls.key": ""},
		{"tls.crt": "a", "tls.kex": "b"},
		{"tls.crt": "a"},
	} {
		replace(t, one, files)
		if read() == first {
			t.Errorf("no change with %v", files)
		}
	}
	replace(t, one, map[string]string{"tls.crt": "a", "tls.key": "b"})
	if read() != first {
		t.Error("the digest differs for the same contents")
	}
	replace(t, two, map[string]string{"ca.crt": "d"})
	if read() == first {
		t.Error("no change in the second directory")
	}
	// A directory without the link ..data.
	plain := t.TempDir()
	must(t, os.WriteFile(filepath.Join(plain, "tls.crt"), []byte("a"), 0o400))
	must(t, os.Mkdir(filepath.Join(plain, "other"), 0o700))
	if _, err := contents([]string{plain}); err != nil {
		t.Error(err)
	}
	if _, err := contents([]string{filepath.Join(plain, "none")}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
}

func TestCall(t *testing.T) {
	var asked []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.Method+" "+r.URL.RequestURI())
		switch r.URL.Path {
		case "/moved":
			http.Redirect(w, r, "/reload", http.StatusTemporaryRedirect)
		case "/broken":
			w.WriteHeader(http.StatusInternalServerError)
		case "/slow":
			<-r.Context().Done()
		case "/reload":
			w.WriteHeader(http.StatusNoContent)
		}
	}))
	defer server.Close()
	u, err := url.Parse(server.URL)
	must(t, err)
	u.User = url.UserPassword("admin", "password")
	u.RawQuery = "token=secret"
	for path, want := range map[string]string{
		"/reload": "", "/moved": "307", "/broken": "500 Internal Server Error", "/slow": "context deadline exceeded",
	} {
		u.Path = path
		timeout := time.Minute
		if path == "/slow" {
			timeout = 2 * time.Second
		}
		ctx, cancel := context.WithTimeout(t.Context(), timeout)
		err := call(ctx, http.MethodPut, u)
		cancel()
		if got := fmt.Sprint(err); (want == "") != (err == nil) || !strings.Contains(got, want) || strings.Contains(got, "secret") || strings.Contains(got, "password") {
			t.Errorf("%s: %v", path, err)
		}
	}
	if len(asked) != 4 || !strings.HasPrefix(asked[0], "PUT /") {
		t.Errorf("the server received %q", asked)
	}
	server.Close()
	if err := call(t.Context(), http.MethodPost, u); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("no server: %v", err)
	}
}

func TestExecute(t *testing.T) {
	for _, test := range []struct {
		command []string
		want    string
	}{
		{[]string{"true"}, "<nil>"},
		{[]string{"sh", "-c", "exit 7"}, "sh: exit status 7"},
		{[]string{"sh", "-c", "kill -9 $$"}, "sh: exit status 137"},
		{[]string{"step-csi-no-such-program"}, `"step-csi-no-such-program": executable file not found`},
	} {
		if err := execute(t.Context(), test.command); !strings.Contains(fmt.Sprint(err), test.want) {
			t.Errorf("%q: %v", test.command, err)
		}
	}
	// A command that hangs is killed, together with the processes that it started.
	file := filepath.Join(t.TempDir(), "pid")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	executed := make(chan error, 1)
	go func() { executed <- execute(ctx, []string{"sh", "-c", "sleep 600 & echo $! >" + file + "; wait"}) }()
	pid, err := readPIDFile(file)
	for ; err != nil && ctx.Err() == nil; time.Sleep(10 * time.Millisecond) {
		pid, err = readPIDFile(file)
	}
	must(t, err)
	cancel()
	if err := <-executed; fmt.Sprint(err) != "sh: exit status 137" {
		t.Error(err)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if state := processStatus(pid)["State"]; state == "" || strings.HasPrefix(state, "Z") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the command's child still runs")
		}
	}
}

// send does not send SIGHUP to a process that SIGHUP would kill.
func TestSendOnlyToHandlers(t *testing.T) {
	// Under nohup, children ignore SIGHUP for good. They do not inherit a handler.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGHUP)
	defer signal.Stop(signals)
	handling, err := start([]string{"sh", "-c", "trap 'exit 3' HUP; echo; while sleep 0.1; do :; done"}, nil)
	must(t, err)
	t.Cleanup(func() { _ = handling.Kill() })
	helpless, err := start([]string{"sleep", "600"}, nil)
	must(t, err)
	t.Cleanup(func() { _ = helpless.Kill() })
	for deadline := time.Now().Add(time.Minute); !handles(handling.Pid, syscall.SIGHUP); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the shell set no trap")
		}
	}
	must(t, send(syscall.SIGHUP, handling))
	if err := wait(handling.Pid); !errors.Is(err, exitStatus(3)) {
		t.Errorf("the process with a handler: %v", err)
	}
	if err := send(syscall.SIGHUP, helpless); err == nil || !strings.Contains(err.Error(), "does not handle SIGHUP") {
		t.Errorf("the process without a handler: %v", err)
	}
	must(t, send(syscall.SIGTERM, helpless)) // SIGTERM is meant to end a process
	if err := wait(helpless.Pid); !errors.Is(err, exitStatus(143)) {
		t.Error(err)
	}
}

func TestPIDFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pid")
	for text, want := range map[string]string{
		"":                              "not a process ID",
		"-1":                            "not a process ID",
		"0\n":                           "not a process ID",
		fmt.Sprint(os.Getpid()):         "which is step-csi-reload itself",
		fmt.Sprint(1<<22) + "\n/data\n": "process already finished; a sidecar needs",
	} {
		must(t, os.WriteFile(file, []byte(text), 0o600))
		c := config{signal: syscall.SIGHUP, pidFile: file}
		if err := c.signalOthers(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if err := (config{pidFile: file + "x"}).signalOthers(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if err := (config{processName: "no-such-thing"}).signalOthers(); err == nil || !strings.Contains(err.Error(), "shareProcessNamespace") {
		t.Errorf("no process: %v", err)
	}
}

// The search finds only the server, and not its workers with the same name.
func TestFindProcesses(t *testing.T) {
	name := filepath.Join(t.TempDir(), "step-csi-named-test") // longer than the kernel's 15 characters
	shell, err := exec.LookPath("bash")
	must(t, err)
	binary, err := os.ReadFile(shell)
	must(t, err)
	must(t, os.WriteFile(name, binary, 0o700))
	master, err := start([]string{name, "-c", name + " -c 'sleep 600; :' & wait"}, &syscall.SysProcAttr{Setpgid: true})
	must(t, err)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", master.Pid))
		must(t, err)
		worker := strings.Fields(string(children))
		if len(worker) == 1 && strings.HasPrefix(comm(worker[0]), "step-csi-named-") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the worker did not start")
		}
	}
	if pids, err := findProcesses(filepath.Base(name)); err != nil || len(pids) != 1 || pids[0] != master.Pid {
		t.Errorf("got %d, %v; want %d", pids, err, master.Pid)
	}
	must(t, syscall.Kill(-master.Pid, syscall.SIGKILL))
	_ = wait(master.Pid)
	// The worker ends later, and the next run would find it.
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if pids, _ := findProcesses(filepath.Base(name)); len(pids) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the worker did not end")
		}
	}
}

func comm(pid string) string {
	name, _ := os.ReadFile("/proc/" + pid + "/comm")
	return string(name)
}

func TestCheck(t *testing.T) {
	u := &url.URL{Scheme: "http", Host: "localhost"}
	valid := config{directories: []string{"/tls"}, program: []string{"nginx"}, signal: syscall.SIGHUP, timeout: time.Second}
	must(t, valid.check())
	for want, change := range map[string]func(*config){
		"--dir":                         func(c *config) { c.directories = nil },
		"what to do":                    func(c *config) { c.signal = 0 },
		"exactly one of":                func(c *config) { c.url = u },
		"--signal needs exactly one":    func(c *config) { c.program = nil },
		"a program after --":            func(c *config) { c.pidFile = "x" },
		"work only with --signal":       func(c *config) { c.signal, c.url, c.processName = 0, u, "x" },
		"--debounce: -1s is negative":   func(c *config) { c.debounce = -time.Second },
		"--timeout: 0s is not positive": func(c *config) { c.timeout = 0 },
	} {
		c := valid
		change(&c)
		if err := c.check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// A sidecar follows a volume that appears late, is rotated, disappears and returns.
func TestSidecar(t *testing.T) {
	directory := filepath.Join(t.TempDir(), "tls")
	calls := make(chan struct{}, 100)
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { calls <- struct{}{} }))
	defer server.Close()
	u, err := url.Parse(server.URL)
	must(t, err)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		ended <- reload(ctx, slog.New(slog.DiscardHandler), config{directories: []string{directory}, url: u, method: "POST", debounce: time.Millisecond, timeout: time.Minute})
	}()
	called := func(why string) {
		t.Helper()
		select {
		case <-calls:
		case <-time.After(30 * time.Second):
			t.Fatalf("no call: %s", why)
		}
	}
	files := map[string]string{"tls.crt": "1"}
	must(t, os.Mkdir(directory, 0o700))
	replace(t, directory, files)
	called("at the start")
	replace(t, directory, map[string]string{"tls.crt": "2"})
	called("a rotation")
	must(t, os.Rename(directory, directory+"-away"))
	must(t, os.Mkdir(directory, 0o700))
	replace(t, directory, map[string]string{"tls.crt": "3"})
	called("another directory at the path")
	replace(t, directory, map[string]string{"tls.crt": "4"})
	called("a rotation in the other directory")
	must(t, os.RemoveAll(directory))
	must(t, os.Mkdir(directory, 0o700))
	replace(t, directory, map[string]string{"tls.crt": "5"})
	called("the directory is back")
	stop()
	must(t, <-ended)
	if len(calls) > 0 {
		t.Errorf("%d unexpected calls", len(calls))
	}
}

// A panic in fsnotify is logged, and step-csi-reload polls the files instead. A
// Watcher that NewWatcher did not create panics.
func TestWatchPanics(t *testing.T) {
	var logged strings.Builder
	log := slog.New(slog.NewTextHandler(&logged, nil))
	if addAll(log, &fsnotify.Watcher{}, []string{t.TempDir()}) {
		t.Error("the directory counts as watched")
	}
	if text := logged.String(); !strings.Contains(text, `msg="Recovered a panic"`) || !strings.Contains(text, "fsnotify.(*Watcher).Add") {
		t.Errorf("the log lacks the panic and its stack: %s", text)
	}
}
