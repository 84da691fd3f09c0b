package integration

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/flexstack/step-csi/test/node"
)

// With --logging-format=json, all that a process writes from its start to its end are
// lines of JSON, also about failures of the connection to the CA. They have the messages
// of the text format, the pod, and no key.
func TestLogsInJSON(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	n := node.New(t, binary, ca)
	n.Flags = []string{"--logging-format=json"}
	n.Start()
	p := node.Pod{Name: "web-0", Attributes: map[string]string{"service-names": "web"}}
	n.Publish(p)
	key, err := os.ReadFile(filepath.Join(n.Target(p), "tls.key"))
	node.Must(t, err)
	denied := node.Pod{Name: "evil-0", Attributes: map[string]string{"dns-names": "db.other.svc\",\"level\":\"INFO"}}
	if err := n.TryPublish(denied); err == nil {
		t.Error("the pod gets any name")
	}
	ca.Stop()
	if err := n.TryPublish(node.Pod{Name: "late-0"}); err == nil {
		t.Error("a stopped CA signs")
	}
	n.Unpublish(p)
	n.Stop()

	want := map[string]map[string]string{ // by message
		"step-csi":         {"level": "INFO", "driver": "csi.step-ca.io"},
		"Issuer connected": {"level": "INFO"},
		"Call succeeded":   {"level": "DEBUG", "pod": "shop/web-0"},
		"Call failed":      {"level": "ERROR", "pod": "shop/evil-0"},
	}
	lines := 0
	for line := range strings.Lines(n.Logs.String()) {
		lines++
		var entry map[string]any
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			t.Errorf("%v: %s", err, line)
			continue
		}
		message, _ := entry["msg"].(string)
		matches := want[message] != nil
		for name, value := range want[message] {
			matches = matches && entry[name] == value
		}
		if matches {
			delete(want, message)
		}
	}
	if len(want) > 0 {
		t.Errorf("%d lines lack %v", lines, want)
	}
	for line := range strings.Lines(string(key)) {
		if len(line) > 30 && strings.Contains(n.Logs.String(), strings.TrimSpace(line)) {
			t.Error("the private key is in the log")
		}
	}
}
