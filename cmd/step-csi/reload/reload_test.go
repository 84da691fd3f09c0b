package reload

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// replace makes the files those of a volume, as its driver does.
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
	look := func() digest {
		t.Helper()
		d, err := contents([]string{one, two})
		must(t, err)
		return d
	}
	replace(t, one, map[string]string{"tls.crt": "a", "tls.key": "b"})
	if _, err := contents([]string{one, two}); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), two) {
		t.Errorf("one is empty: %v", err)
	}
	replace(t, two, map[string]string{"ca.crt": "c"})
	first := look()
	replace(t, one, map[string]string{"tls.crt": "a", "tls.key": "b"})
	if look() != first {
		t.Error("written anew is not changed")
	}
	for _, files := range []map[string]string{
		{"tls.crt": "a", "tls.key": "x"},
		{"tls.crt": "ab", "tls.key": ""},
		{"tls.crt": "a", "tls.kex": "b"},
		{"tls.crt": "a"},
	} {
		replace(t, one, files)
		if look() == first {
			t.Errorf("not seen: %v", files)
		}
	}
	replace(t, one, map[string]string{"tls.crt": "a", "tls.key": "b"})
	if look() != first {
		t.Error("back again is not the same")
	}
	replace(t, two, map[string]string{"ca.crt": "d"})
	if look() == first {
		t.Error("not seen in the second directory")
	}
	// Without the link, as programs write that know nothing of it.
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
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		err := call(ctx, http.MethodPut, u)
		cancel()
		if got := fmt.Sprint(err); (want == "") != (err == nil) || !strings.Contains(got, want) || strings.Contains(got, "secret") || strings.Contains(got, "password") {
			t.Errorf("%s: %v", path, err)
		}
	}
	if len(asked) != 4 || !strings.HasPrefix(asked[0], "PUT /") {
		t.Errorf("asked %q", asked)
	}
	server.Close()
	if err := call(t.Context(), http.MethodPost, u); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("nobody there: %v", err)
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
	// A command that hangs, and what it has started, is killed.
	file := filepath.Join(t.TempDir(), "pid")
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	err := execute(ctx, []string{"sh", "-c", "sleep 600 & echo $! >" + file + "; wait"})
	if fmt.Sprint(err) != "sh: exit status 137" {
		t.Error(err)
	}
	pid, err := readPIDFile(file)
	must(t, err)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if state := processStatus(pid)["State"]; state == "" || strings.HasPrefix(state, "Z") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("what the command had started goes on")
		}
	}
}

// A signal is not sent to a process that it would kill.
func TestSignalOnlyWhoHandlesIt(t *testing.T) {
	handling, err := start([]string{"sh", "-c", "trap 'exit 3' HUP; echo; while sleep 0.1; do :; done"}, nil)
	must(t, err)
	helpless, err := start([]string{"sleep", "600"}, nil)
	must(t, err)
	for deadline := time.Now().Add(20 * time.Second); !handles(handling.Pid, syscall.SIGHUP); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no trap")
		}
	}
	must(t, send(syscall.SIGHUP, handling))
	if err := wait(handling.Pid); !errors.Is(err, ExitStatus(3)) {
		t.Errorf("the one that handles it: %v", err)
	}
	if err := send(syscall.SIGHUP, helpless); err == nil || !strings.Contains(err.Error(), "does not handle SIGHUP") {
		t.Errorf("the one that does not: %v", err)
	}
	must(t, send(syscall.SIGTERM, helpless)) // which is meant to end it
	if err := wait(helpless.Pid); !errors.Is(err, ExitStatus(143)) {
		t.Error(err)
	}
}

func TestWhichProcess(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pid")
	for text, want := range map[string]string{
		"":                              "no process id",
		"-1":                            "no process id",
		"0\n":                           "no process id",
		fmt.Sprint(os.Getpid()):         "which is this one",
		fmt.Sprint(1<<22) + "\n/data\n": "process already finished; in a sidecar",
	} {
		must(t, os.WriteFile(file, []byte(text), 0o600))
		c := Config{Signal: syscall.SIGHUP, PIDFile: file}
		if err := c.signalOthers(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if err := (Config{PIDFile: file + "x"}).signalOthers(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if err := (Config{ProcessName: "no-such-thing"}).signalOthers(); err == nil || !strings.Contains(err.Error(), "shareProcessNamespace") {
		t.Errorf("no process: %v", err)
	}
}

// Of a server with workers of the same name, the one that started them.
func TestNamed(t *testing.T) {
	name := filepath.Join(t.TempDir(), "step-csi-reload-test") // longer than the kernel keeps
	shell, err := lookPath("bash")
	must(t, err)
	binary, err := os.ReadFile(shell)
	must(t, err)
	must(t, os.WriteFile(name, binary, 0o700))
	master, err := start([]string{name, "-c", name + " -c 'sleep 600; :' & wait"}, &syscall.SysProcAttr{Setpgid: true})
	must(t, err)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", master.Pid))
		must(t, err)
		worker := strings.Fields(string(children))
		if len(worker) == 1 && strings.HasPrefix(comm(worker[0]), "step-csi-reload") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no worker")
		}
	}
	if pids, err := named(filepath.Base(name)); err != nil || len(pids) != 1 || pids[0] != master.Pid {
		t.Errorf("got %d, %v; want %d", pids, err, master.Pid)
	}
	must(t, syscall.Kill(-master.Pid, syscall.SIGKILL))
	_ = wait(master.Pid)
}

func comm(pid string) string {
	name, _ := os.ReadFile("/proc/" + pid + "/comm")
	return string(name)
}

func TestCheck(t *testing.T) {
	u := &url.URL{Scheme: "http", Host: "localhost"}
	valid := Config{Directories: []string{"/tls"}, Program: []string{"nginx"}, Signal: syscall.SIGHUP, Timeout: time.Second}
	must(t, valid.Check())
	for want, change := range map[string]func(*Config){
		"--dir":                      func(c *Config) { c.Directories = nil },
		"what to do":                 func(c *Config) { c.Signal = 0 },
		"by one of":                  func(c *Config) { c.URL = u },
		"--signal needs one":         func(c *Config) { c.Program = nil },
		"a program after --":         func(c *Config) { c.PIDFile = "x" },
		"are for --signal only":      func(c *Config) { c.Signal, c.URL, c.ProcessName = 0, u, "x" },
		"--debounce: -1s is less":    func(c *Config) { c.Debounce = -time.Second },
		"--timeout: 0s is too short": func(c *Config) { c.Timeout = 0 },
	} {
		c := valid
		change(&c)
		if err := c.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// The whole, without a program: a volume that is not there yet, is renewed, goes
// away and comes back.
func TestRun(t *testing.T) {
	directory := filepath.Join(t.TempDir(), "tls")
	calls := make(chan struct{}, 100)
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { calls <- struct{}{} }))
	defer server.Close()
	u, err := url.Parse(server.URL)
	must(t, err)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		ended <- Run(ctx, Config{Directories: []string{directory}, URL: u, Method: "POST", Debounce: time.Millisecond, Timeout: time.Minute})
	}()
	called := func(why string) {
		t.Helper()
		select {
		case <-calls:
		case <-time.After(30 * time.Second):
			t.Fatalf("not called: %s", why)
		}
	}
	files := map[string]string{"tls.crt": "1"}
	must(t, os.Mkdir(directory, 0o700))
	replace(t, directory, files)
	called("it starts")
	replace(t, directory, map[string]string{"tls.crt": "2"})
	called("a rotation")
	must(t, os.Rename(directory, directory+"-away"))
	must(t, os.Mkdir(directory, 0o700))
	replace(t, directory, map[string]string{"tls.crt": "3"})
	called("another directory at the path")
	replace(t, directory, map[string]string{"tls.crt": "4"})
	called("a rotation in that")
	must(t, os.RemoveAll(directory))
	must(t, os.Mkdir(directory, 0o700))
	replace(t, directory, map[string]string{"tls.crt": "5"})
	called("it is back")
	stop()
	must(t, <-ended)
	if len(calls) > 0 {
		t.Errorf("%d calls too many", len(calls))
	}
}
