package main

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Without a capability to keep, harden drops all capabilities. The test hardens a
// child process, because hardening cannot be undone.
func TestHardenWithoutAnyCapability(t *testing.T) {
	if os.Getenv("STEP_CSI_HARDEN") == "" {
		child := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		child.Env = append(os.Environ(), "STEP_CSI_HARDEN=1")
		if out, err := child.CombinedOutput(); err != nil || !strings.Contains(string(out), "PASS: "+t.Name()) {
			t.Errorf("%v:\n%s", err, out)
		}
		return
	}
	for range 2 { // harden is idempotent
		if err := harden(); err != nil {
			t.Fatal(err)
		}
	}
	threads, err := filepath.Glob("/proc/self/task/*/status")
	if err != nil || len(threads) < 2 {
		t.Fatalf("threads %q, %v", threads, err)
	}
	for _, path := range threads {
		status, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"CapInh:\t0+", "CapPrm:\t0+", "CapEff:\t0+", "CapAmb:\t0+", "NoNewPrivs:\t1"} {
			if !regexp.MustCompile(`(?m)^` + want + `$`).Match(status) {
				t.Errorf("%s: lacks %q:\n%s", path, want, status)
			}
		}
	}
	if dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); dumpable != 0 || err != nil {
		t.Errorf("dumpable %d, %v", dumpable, err)
	}
}

func TestExplainDenied(t *testing.T) {
	if err := explainDenied(fs.ErrNotExist); err != fs.ErrNotExist {
		t.Error(err)
	}
	if err := explainDenied(fs.ErrPermission); !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "must allow user") {
		t.Error(err)
	}
}
