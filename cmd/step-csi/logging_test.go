package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"log"
	"log/slog"
	"net"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/grpclog"
	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer"
)

// TestMain lets a test run this program as another process, whose logging a test can
// change without changing that of other tests.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "write-every-kind-of-log" {
		writeEveryKindOfLog(logFormat(os.Args[2]))
		return
	}
	os.Exit(m.Run())
}

func writeEveryKindOfLog(format logFormat) {
	if err := setUpLogs(format, 4, os.Stderr); err != nil {
		panic(err)
	}
	logger := klog.Background().WithValues("pod", "shop/web-0")
	address, _ := net.ResolveTCPAddr("tcp", "127.0.0.1:9808")
	logger.Info("Serving health", "address", address, "took", 90*time.Second, "url", &url.URL{Scheme: "https", Host: "ca"})
	logger.Error(errors.New("the CA\nsays \"no\""), "Renewal failed", "names", []string{"a", "b"}, "attempts", 3)
	logger.Error(nil, "Certificate expiring", "nothing", (*url.URL)(nil))
	logger.V(4).Info("Call succeeded")
	logger.V(5).Info("Too detailed")
	klog.Errorf("from a %s", "library")
	klog.V(4).Infof("detail of a library")
	log.Print("from net/http")
	grpclog.Error("from gRPC")
	grpclog.Info("too detailed, from gRPC")
	logger.Info("Keys", "key", issuer.PrivateKey{}, "pointer", &issuer.PrivateKey{})
	klog.Flush()
}

// logOf returns what the program writes in this format.
func logOf(t *testing.T, format logFormat) string {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(t.Context(), program, "write-every-kind-of-log", string(format))
	var stderr bytes.Buffer
	c.Stderr = &stderr
	if out, err := c.Output(); err != nil || len(out) > 0 {
		t.Fatal(err, string(out), &stderr)
	}
	return stderr.String()
}

// Every line is an object, also those of libraries. It has the message as it is, and values as
// the text format shows them.
func TestLogsInJSON(t *testing.T) {
	got := map[string]map[string]any{}
	for line := range strings.Lines(logOf(t, logJSON)) {
		var entry map[string]any
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if _, err := time.Parse(time.RFC3339Nano, entry["time"].(string)); err != nil {
			t.Error(err)
		}
		delete(entry, "time")
		if caller, _ := entry["caller"].(string); strings.Contains(line, "pod") && (!strings.HasPrefix(caller, "logging_test.go:")) {
			t.Errorf("the caller of %s", line)
		}
		message := entry["msg"].(string)
		if _, text, found := strings.Cut(message, "ERROR: "); found {
			message = text // gRPC's own time comes first
		}
		got[message] = entry
	}
	for message, want := range map[string]map[string]any{
		"Serving health":       {"level": "INFO", "pod": "shop/web-0", "address": "127.0.0.1:9808", "took": "1m30s", "url": "https://ca"},
		"Renewal failed":       {"level": "ERROR", "pod": "shop/web-0", "err": "the CA\nsays \"no\"", "names": []any{"a", "b"}, "attempts": 3.0},
		"Certificate expiring": {"level": "ERROR", "nothing": "<nil>"},
		"Call succeeded":       {"level": "DEBUG"},
		"from a library":       {"level": "ERROR"},
		"detail of a library":  {"level": "DEBUG"},
		"from net/http":        {"level": "INFO"},
		"from gRPC":            {"level": "ERROR"},
		"Keys":                 {"level": "INFO", "key": "[private key]", "pointer": "[private key]"},
	} {
		entry, there := got[message]
		if !there {
			t.Errorf("no line %q", message)
			continue
		}
		for key, value := range want {
			if text, list := value.([]any); list {
				if other, _ := entry[key].([]any); slices.Equal(text, other) {
					continue
				}
			} else if entry[key] == value {
				continue
			}
			t.Errorf("%s: %s is %v, want %v", message, key, entry[key], value)
		}
	}
	if len(got) != 9 {
		t.Errorf("%d lines, want 9: %v", len(got), got)
	}
}

// The text format is klog's.
func TestLogsInText(t *testing.T) {
	got := logOf(t, logText)
	for _, want := range []string{
		`] "Serving health" pod="shop/web-0" address="127.0.0.1:9808" took="1m30s"`,
		`] "Renewal failed" err=<`, `] "Call succeeded" pod="shop/web-0"`, "] from a library\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("the log lacks %s:\n%s", want, got)
		}
	}
	if strings.Contains(got, "{\"") || strings.Contains(got, "Too detailed") {
		t.Error(got)
	}
}

func TestLogFormats(t *testing.T) {
	format := logText
	flags := flag.NewFlagSet("x", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.Var(&format, "logging-format", "")
	if err := flags.Parse([]string{"--logging-format=json"}); err != nil || format != logJSON {
		t.Error(format, err)
	}
	if err := flags.Parse([]string{"--logging-format=JSON"}); err == nil || !strings.Contains(err.Error(), "the formats are text and json") {
		t.Error(err)
	}
	// A value of a type that only prints stays out of the line, too.
	a := logAttribute(nil, slog.Any("k", &secret{"hunter2"}))
	if a.Value.String() != "[secret]" {
		t.Error(a)
	}
}

type secret struct{ Text string }

func (*secret) String() string { return "[secret]" }
