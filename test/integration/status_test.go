package integration

import (
	"encoding/json"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/flexstack/step-csi/driver"
	"github.com/flexstack/step-csi/test/node"
)

// runStatus runs step-csi status as kubectl exec does: with the container's environment,
// and no flag that says where the node plugin is.
func runStatus(n *node.Node, args ...string) (text string, code int) {
	command := binary.Command(append([]string{"status"}, args...)...)
	command.Env = append(os.Environ(), "STEP_CSI_STATUS_SOCKET="+filepath.Join(filepath.Dir(n.Socket()), "status.sock"))
	out, err := command.CombinedOutput()
	if exit, is := err.(*exec.ExitError); is {
		return string(out), exit.ExitCode()
	} else if err != nil {
		return err.Error(), -1
	}
	return string(out), 0
}

// The status of the real plugin has its volumes, and neither a key nor a token. Only root
// can read it, and readers who do not read do not keep others, or publishes, from an answer.
func TestStatusOfThePlugin(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	n := newNode(t, ca)
	const token = "secret-token"
	n.Tokens = func(node.Pod) string { return token }
	late, soon := node.Pod{Name: "late-0", Attributes: map[string]string{"duration": "2h", "service-names": "late"}}, node.Pod{Name: "soon-0", Attributes: map[string]string{"duration": "1h"}}
	n.Publish(late)
	n.Publish(soon)

	socket := filepath.Join(filepath.Dir(n.Socket()), "status.sock")
	if info, err := os.Stat(socket); err != nil || info.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("the socket: %v, %v", info.Mode(), err)
	}
	for range 50 {
		idle, err := net.Dial("unix", socket)
		node.Must(t, err)
		defer idle.Close()
		_, err = idle.Write([]byte("GET " + driver.StatusPath + " HTTP/1.1\r\n")) // and no more
		node.Must(t, err)
	}

	text, code := runStatus(n)
	before, after, found := strings.Cut(text, "shop/soon-0")
	if code != 0 || !found || strings.Contains(before, "shop/late-0") || !strings.Contains(after, "late.shop") {
		t.Errorf("exit status %d:\n%s", code, text)
	}
	text, code = runStatus(n, "-o", "json")
	var s driver.Status
	node.Must(t, json.Unmarshal([]byte(text), &s))
	if code != 0 || !s.Ready || s.Registered == nil || !*s.Registered || len(s.Volumes) != 2 || s.Volumes[0].Pod != "soon-0" || s.Volumes[0].State != driver.StateOK ||
		s.Volumes[0].Serial == "" || s.Volumes[0].Renewal.IsZero() || len(s.Issuers) != 1 || !s.Issuers[0].Ready {
		t.Errorf("exit status %d: %s", code, text)
	}
	for _, secret := range []string{token, "PRIVATE KEY", "BEGIN"} {
		if strings.Contains(text, secret) {
			t.Errorf("the status contains %q", secret)
		}
	}

	// A restarted plugin waits for the kubelet. Somebody has removed the socket meanwhile.
	n.Stop()
	if text, code := runStatus(n); code != 1 || !strings.Contains(text, "no answer from the node plugin at "+socket) {
		t.Errorf("exit status %d: %s", code, text)
	}
	n.Start()
	if text, code := runStatus(n, "--pod", "shop/late-0"); code != 0 || !strings.Contains(text, "waiting: the kubelet has not published the volume") {
		t.Errorf("exit status %d: %s", code, text)
	}
	node.Must(t, os.Remove(socket))
	node.Eventually(t, patience, "the plugin serves its status again", func() bool { _, code := runStatus(n); return code == 0 })
	n.Republish()

	// The CA is down: the renewal of a short certificate fails, and so does the command.
	short := node.Pod{Name: "short-0", Attributes: map[string]string{"duration": "10s"}}
	n.Publish(short)
	ca.Stop()
	node.Eventually(t, patience, "the volume fails", func() bool {
		text, code := runStatus(n, "--failing")
		return code == 1 && strings.Contains(text, "shop/short-0") && !strings.Contains(text, "shop/late-0") && strings.Contains(text, "connection refused")
	})
	for _, p := range []node.Pod{late, soon, short} {
		n.Unpublish(p)
	}
	n.Stop()
	n.ExpectNothingLeft()
}
