package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"
)

func TestCommandLine(t *testing.T) {
	for _, test := range []struct {
		args           string
		status         int
		stdout, stderr string
	}{
		{"--help", 0, "Usage: step-csi-reload", ""},
		{"--version", 0, "step-csi-reload ", ""},
		{"", 2, "", "step-csi-reload: name a directory"},
		{"reload --dir /tls --signal HUP true", 2, "", "step-csi-reload: name a directory"}, // typed as "step-csi reload"
		{"--dir /tls --signal NONE true", 2, "", `unknown signal "NONE"`},
		{"--dir /tls --exec", 2, "", "name the command"},
		{"--dir /tls --url localhost", 2, "", "--url: not a URL"},
		{"--dir /tls --socket x", 2, "", "-socket"},
		{"--dir testdata --signal HUP -- /no/such/program", 1, "", "step-csi-reload: start the program"},
		{"--dir testdata --signal HUP -- false", 1, "", "msg=Watching"},
		{"--dir testdata --logging-format text --signal HUP -- false", 1, "", "msg=Watching"},
		{"--dir testdata --logging-format json --signal HUP -- false", 1, "", `"level":"INFO","msg":"Watching"`},
		{"--dir testdata --logging-format JSON --signal HUP -- false", 2, "", "the formats are text and json"},
	} {
		directory := t.TempDir()
		replace(t, directory, map[string]string{"tls.crt": "a"})
		args := strings.Fields(strings.ReplaceAll(test.args, "testdata", directory))
		var stdout, stderr bytes.Buffer
		if status := run(t.Context(), args, &stdout, &stderr); status != test.status {
			t.Errorf("%q: exit status %d, want %d", args, status, test.status)
		}
		if !strings.Contains(stdout.String(), test.stdout) || !strings.Contains(stderr.String(), test.stderr) {
			t.Errorf("%q: stdout %q, stderr %q", args, &stdout, &stderr)
		}
		if (test.stdout == "") != (stdout.Len() == 0) || (test.stderr == "") != (stderr.Len() == 0) {
			t.Errorf("%q: unexpected output: stdout %q, stderr %q", args, &stdout, &stderr)
		}
	}
}

// In JSON, durations are texts, as in the text format.
func TestDurationsInJSON(t *testing.T) {
	var log bytes.Buffer
	newLogger(&log, true).Error("Reload failed", "err", errors.New("a \"b\""), "retryIn", 90*time.Second)
	var line map[string]any
	must(t, json.Unmarshal(log.Bytes(), &line))
	if line["retryIn"] != "1m30s" || line["err"] != `a "b"` {
		t.Errorf("%s", &log)
	}
}

// Users rely on these flags: the help lists them, and the program accepts them.
func TestFlags(t *testing.T) {
	args := []string{"--dir", "/a", "--dir", "/b", "--signal", "SIGUSR1", "--pid-file", "/pid", "--debounce", "2s", "--timeout", "3s"}
	c, err := parse(args)
	must(t, err)
	if len(c.directories) != 2 || c.signal.String() != "user defined signal 1" || c.pidFile != "/pid" || c.debounce.Seconds() != 2 || c.timeout.Seconds() != 3 {
		t.Errorf("%+v", c)
	}
	c, err = parse([]string{"--dir", "/a", "--url", "https://localhost/x", "--method", "PUT"})
	must(t, err)
	if c.url.Path != "/x" || c.method != "PUT" || c.debounce.Seconds() != 1 || c.timeout.Seconds() != 30 {
		t.Errorf("%+v", c)
	}
	c, err = parse([]string{"--dir", "/a", "--exec", "--", "nginx", "-s", "reload"})
	must(t, err)
	if strings.Join(c.exec, " ") != "nginx -s reload" || c.program != nil || c.method != "POST" {
		t.Errorf("%+v", c)
	}
	c, err = parse([]string{"--dir", "/a", "--signal", "hup", "--process-name", "nginx"})
	must(t, err)
	if c.processName != "nginx" {
		t.Errorf("%+v", c)
	}
	for _, name := range []string{"dir", "signal", "pid-file", "process-name", "exec", "url", "method", "debounce", "timeout", "logging-format", "version"} {
		if !strings.Contains(usage, "  --"+name+" ") {
			t.Errorf("the help lacks --%s", name)
		}
	}
}
