package integration

import (
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// The plugin is alive without the CA, says why it is not ready, and is ready as
// soon as the CA has answered.
func TestHealth(t *testing.T) {
	ca := startCA(t)
	ca.Stop()
	n := prepareNode(t, ca)
	n.flags = []string{"--http-address", "127.0.0.1:0"}
	n.launch()
	var address string
	eventually(t, 15*time.Second, "health is served", func() bool {
		found := regexp.MustCompile(`"Serving health" address="(\S+)"`).FindStringSubmatch(n.logs.String())
		if found != nil {
			address = "http://" + found[1]
		}
		return found != nil
	})
	var body string
	eventually(t, 15*time.Second, "not ready, with the reason", func() bool {
		var status int
		status, body = get(t, address+"/readyz")
		return status == http.StatusServiceUnavailable && strings.Contains(body, "issuer default: "+ca.URL()+": ")
	})
	t.Logf("not ready: %s", body)
	if status, body := get(t, address+"/livez"); status != http.StatusOK || body != "ok\n" {
		t.Errorf("alive: %d %q", status, body)
	}
	must(t, ca.Resume())
	eventually(t, 30*time.Second, "ready", func() bool {
		status, body := get(t, address+"/readyz")
		return status == http.StatusOK && body == "ok\n"
	})
	n.stop()
	if _, err := http.Get(address + "/livez"); err == nil {
		t.Error("health is served after the stop")
	}
}

func get(t *testing.T, url string) (status int, body string) {
	t.Helper()
	response, err := http.Get(url)
	must(t, err)
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	must(t, err)
	return response.StatusCode, string(content)
}

func TestTakenHealthAddressStopsTheStart(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer taken.Close()
	n := prepareNode(t, startCA(t))
	out, err := exec.Command(binary, "node", "--config", n.config, "--kubelet-dir", n.kubeletDir, "--http-address", taken.Addr().String()).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "--http-address "+taken.Addr().String()) {
		t.Errorf("%v: %s", err, out)
	}
}

// A plugin that was stopped leaves nothing of its own, and what others have put
// beside it stays.
func TestNothingIsLeftAtAStop(t *testing.T) {
	n := newNode(t, startCA(t))
	n.stop()
	for _, path := range []string{filepath.Dir(n.socket()), filepath.Join(n.kubeletDir, "plugins_registry", driverName+"-reg.sock")} {
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("%s is left: %v", path, err)
		}
	}
	n.start()
	note := filepath.Join(filepath.Dir(n.socket()), "note")
	must(t, os.WriteFile(note, nil, 0o600))
	n.stop()
	if _, err := os.Stat(note); err != nil {
		t.Error(err)
	}

	// A directory that was there before is not the plugin's.
	shared := filepath.Join(n.kubeletDir, "shared")
	must(t, os.Mkdir(shared, 0o700))
	n.flags = []string{"--csi-socket", filepath.Join(shared, "csi.sock")}
	n.launch()
	eventually(t, 15*time.Second, "it listens", func() bool {
		_, err := os.Lstat(filepath.Join(shared, "csi.sock"))
		return err == nil
	})
	n.stop()
	if left, err := os.ReadDir(shared); err != nil || len(left) > 0 {
		t.Errorf("%v, %v", left, err)
	}
}
