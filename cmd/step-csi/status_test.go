package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/flexstack/step-csi/driver"
	"github.com/flexstack/step-csi/issuer"
)

// answer serves what at a status socket, and returns its path.
func answer(t *testing.T, what http.HandlerFunc) (socket string) {
	t.Helper()
	directory, err := os.MkdirTemp("", "status-") // the path of a socket has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(directory) })
	socket = filepath.Join(directory, "status.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+driver.StatusPath, what)
	server := &http.Server{Handler: mux}
	go server.Serve(listener) //nolint:errcheck // it ends with the test
	t.Cleanup(func() { server.Close() })
	return socket
}

// runStatus runs the command with the socket in its environment.
func runStatus(t *testing.T, s driver.Status, args ...string) (stdout string, err error) {
	t.Helper()
	t.Setenv(statusSocket, answer(t, func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(s) }))
	var out, problems strings.Builder
	err = run(t.Context(), append([]string{"status"}, args...), &out, &problems)
	return out.String() + problems.String(), err
}

func healthy() driver.Status {
	now := time.Date(2026, 11, 26, 1, 0, 0, 0, time.UTC)
	registered := true
	return driver.Status{
		Time: now, Node: "node-1", Driver: "csi.step-ca.io", Version: "v1", Ready: true, Registered: &registered,
		Issuers: []issuer.Status{{Name: "default", Ready: true}},
		Volumes: []driver.VolumeStatus{{
			Namespace: "shop", Pod: "web-0", Volume: "tls", Path: "pods/uid/volumes/kubernetes.io~csi/tls/mount", Driver: "csi.step-ca.io", Issuer: "default",
			Names: []string{"web.shop.svc", "web.shop"}, MoreNames: 3, Serial: "4711", Issued: now.Add(-8 * time.Hour), NotAfter: now.Add(16 * time.Hour), Renewal: now.Add(8 * time.Hour),
			State: driver.StateOK,
		}},
	}
}

// failing is a volume that fails, with texts that control a terminal.
func failing() driver.VolumeStatus {
	v := healthy().Volumes[0]
	v.Namespace, v.Pod, v.State, v.Failures, v.Reason = "bank", "db-0", driver.StateFailing, 3, "connection\x1b[2J\nrefused"
	v.Renewal = healthy().Time.Add(-time.Second)
	return v
}

func TestStatusTable(t *testing.T) {
	s := healthy()
	text, err := runStatus(t, s)
	if err != nil {
		t.Errorf("healthy: %v", err)
	}
	const row = "shop/web-0  tls     default  web.shop.svc +4  in 16h (2026-11-26T17:00:00Z)  in 8h   ok\n"
	for _, want := range []string{"Node:      node-1\n", "Ready:     yes\n", "Kubelet:   registered\n", "Issuer:    default: ready\n", "POD         VOLUME  ISSUER   NAMES            EXPIRES", row} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}

	s.Volumes = append(s.Volumes, failing())
	text, err = runStatus(t, s)
	if want := "  now     failing (3 times): connection [2J refused\n"; err == nil || err.Error() != "volumes that fail: 1" || !strings.Contains(text, want) || strings.Contains(text, "\x1b") {
		t.Errorf("failing: %v, no %q in\n%s", err, want, text)
	}
	for _, c := range []struct {
		args       string
		shown, not string
		fails      bool
	}{
		{"--failing", "bank/db-0", "shop/web-0", true},
		{"--pod=shop/web-0", "shop/web-0", "bank/db-0", false},
		{"--pod=bank/db-0", "bank/db-0", "shop/web-0", true},
		{"--pod=shop/none", "No volumes.", "web-0", true},
		{"-o=wide", "web.shop.svc,web.shop +3", "web.shop.svc +4", true},
		{"-o=wide", "4711", "\x1b", true},
	} {
		text, err := runStatus(t, s, c.args)
		if !strings.Contains(text, c.shown) || strings.Contains(text, c.not) || (err != nil) != c.fails {
			t.Errorf("%s: %v\n%s", c.args, err, text)
		}
	}

	text, err = runStatus(t, s, "-o=json", "--failing")
	var parsed struct {
		Node    string
		Ready   bool
		Volumes []map[string]any
	}
	if problem := json.Unmarshal([]byte(text), &parsed); problem != nil || err == nil || parsed.Node != "node-1" || !parsed.Ready || len(parsed.Volumes) != 1 ||
		parsed.Volumes[0]["pod"] != "db-0" || parsed.Volumes[0]["notAfter"] != "2026-11-26T17:00:00Z" || parsed.Volumes[0]["state"] != "failing" {
		t.Errorf("json: %v, %v, %s", problem, err, text)
	}
}

// What is wrong with the node is printed, and fails.
func TestStatusOfTheNode(t *testing.T) {
	for want, change := range map[string]func(*driver.Status){
		"Ready:     no: no issuer works\n": func(s *driver.Status) { s.Ready, s.NotReady = false, "no issuer works" },
		"Kubelet:   not registered\n":      func(s *driver.Status) { *s.Registered, s.Ready = false, false },
		"Issuer:    edge: not ready: connection refused": func(s *driver.Status) {
			s.Issuers = append(s.Issuers, issuer.Status{Name: "edge", Reason: "connection refused"})
		},
		`Driver "tls.example": 6 volumes are not renewed`: func(s *driver.Status) {
			s.OtherDrivers = []driver.OtherDriver{{Driver: "tls.example", Volumes: 6, NotAfter: "2026-11-26T17:00:00Z"}}
		},
	} {
		s := healthy()
		change(&s)
		if text, err := runStatus(t, s); err == nil || !strings.Contains(text, want) {
			t.Errorf("%v, no %q in\n%s", err, want, text)
		}
	}
	s := healthy()
	s.Registered, s.Volumes = nil, nil
	if text, err := runStatus(t, s); err != nil || !strings.Contains(text, "Kubelet:   registered by another program\n") || !strings.Contains(text, "\nNo volumes.\n") {
		t.Errorf("%v\n%s", err, text)
	}
}

// Without an answer, the error says where the command must run.
func TestStatusWithoutAnswer(t *testing.T) {
	for name, c := range map[string]struct {
		socket, want string
	}{
		"no socket": {filepath.Join(t.TempDir(), "status.sock"), "no such file"},
		"too many readers": {answer(t, func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "too many readers; try again", http.StatusServiceUnavailable)
		}), "too many readers"},
		"no JSON": {answer(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello") }), "invalid character"},
	} {
		var out, problems strings.Builder
		err := run(t.Context(), []string{"status", "--socket", c.socket}, &out, &problems)
		if err == nil || errors.Is(err, errUsage) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), c.socket) || !strings.Contains(err.Error(), "in the node plugin's pod") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, args := range [][]string{{"-o", "yaml"}, {"--pod", "web-0"}, {"--pod", "/web-0"}, {"--pod", "a/b/c"}, {"web-0"}} {
		var out, problems strings.Builder
		if err := run(t.Context(), append([]string{"status"}, args...), &out, &problems); !errors.Is(err, errUsage) || problems.Len() == 0 {
			t.Errorf("%q: %v, %s", args, err, &problems)
		}
	}
}
