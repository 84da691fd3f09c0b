package main

import (
	"bytes"
	"strings"
	"testing"
)

// Exit statuses, and which stream has the text.
func TestCommandLine(t *testing.T) {
	for _, c := range []struct {
		args           []string
		status         int
		stdout, stderr string
	}{
		{nil, 2, "", "Usage:"},
		{[]string{"--help"}, 0, "kubectl step-csi convert", ""},
		{[]string{"help"}, 0, "kubectl step-csi convert", ""},
		{[]string{"version"}, 0, "kubectl-step_csi ", ""},
		{[]string{"--version"}, 0, "kubectl-step_csi ", ""},
		{[]string{"version", "x"}, 2, "", `unexpected argument "x"`},
		{[]string{"list"}, 2, "", `unknown command "list"`},
		{[]string{"convert"}, 2, "", "name a file with -f"},
		{[]string{"convert", "a.yaml"}, 2, "", `unexpected argument "a.yaml"`},
		{[]string{"convert", "-x"}, 2, "", "not defined"},
		{[]string{"convert", "-f", "-", "--issuer", "x"}, 2, "", "write NAME=ISSUER"},
		{[]string{"convert", "-f", "-", "--cluster-domain", "a b"}, 2, "", "--cluster-domain"},
	} {
		var stdout, stderr bytes.Buffer
		status := run(t.Context(), c.args, strings.NewReader(""), &stdout, &stderr)
		if status != c.status || !strings.Contains(stdout.String(), c.stdout) || !strings.Contains(stderr.String(), c.stderr) {
			t.Errorf("%v: status %d, stdout %q, stderr %q", c.args, status, stdout.String(), stderr.String())
		}
		if (stdout.Len() > 0) != (c.stdout != "") || (stderr.Len() > 0) != (c.stderr != "") {
			t.Errorf("%v: stdout %q, stderr %q", c.args, stdout.String(), stderr.String())
		}
	}
}

// Each command is in the help, and describes itself.
func TestHelp(t *testing.T) {
	for _, c := range commands() {
		if !strings.Contains(usage(), "kubectl step-csi "+c.name+" ") {
			t.Errorf("the help leaves out %s", c.name)
		}
		var stdout, stderr bytes.Buffer
		status := run(t.Context(), append(strings.Fields(c.name), "--help"), strings.NewReader(""), &stdout, &stderr)
		if status != 0 || stderr.Len() > 0 || !strings.Contains(stdout.String(), "Usage: kubectl step-csi "+c.name) {
			t.Errorf("%s --help: status %d, %s%s", c.name, status, stdout.String(), stderr.String())
		}
	}
}
