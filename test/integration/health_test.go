package integration

import (
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/flexstack/step-csi/test/logs"
	"github.com/flexstack/step-csi/test/node"
)

// Without the CA, the plugin is live but not ready, and says why. It becomes ready
// as soon as the CA answers.
func TestHealth(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	ca.Stop()
	n := node.New(t, binary, ca)
	n.Flags = []string{"--http-address", "127.0.0.1:0"}
	n.Launch()
	var address string
	node.Eventually(t, time.Minute, "the plugin serves its health", func() bool {
		found := regexp.MustCompile(logs.ServingHealth + ` address="(\S+)"`).FindStringSubmatch(n.Logs.String())
		if found != nil {
			address = "http://" + found[1]
		}
		return found != nil
	})
	var body string
	node.Eventually(t, time.Minute, "the plugin is not ready and says why", func() bool {
		var status int
		status, body = get(t, address+"/readyz")
		return status == http.StatusServiceUnavailable && strings.Contains(body, "issuer default: the CA "+ca.URL()+" cannot be reached: ")
	})
	t.Logf("not ready: %s", body)
	if status, body := get(t, address+"/livez"); status != http.StatusOK || body != "ok\n" {
		t.Errorf("livez: %d %q", status, body)
	}
	node.Must(t, ca.Resume())
	n.WaitReady()
	node.Eventually(t, time.Minute, "the plugin is ready", func() bool {
		status, body := get(t, address+"/readyz")
		return status == http.StatusOK && strings.HasPrefix(body, "ok\n")
	})
	n.Stop()
	if _, err := http.Get(address + "/livez"); err == nil {
		t.Error("the plugin still serves its health after the stop")
	}
}

func get(t *testing.T, url string) (status int, body string) {
	t.Helper()
	response, err := http.Get(url)
	node.Must(t, err)
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	node.Must(t, err)
	return response.StatusCode, string(content)
}

func TestHealthAddressInUse(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	node.Must(t, err)
	defer taken.Close()
	n := node.New(t, binary, startCA(t))
	out, err := binary.Command("node", "--config", n.Config, "--kubelet-dir", n.KubeletDir, "--http-address", taken.Addr().String()).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "--http-address "+taken.Addr().String()) {
		t.Errorf("%v: %s", err, out)
	}
}

// expectOnlyRoots expects nothing in the directory of a stopped plugin but the roots that
// it has learned.
func expectOnlyRoots(t *testing.T, directory string) {
	t.Helper()
	left, err := os.ReadDir(directory)
	node.Must(t, err)
	for _, file := range left {
		if file.Name() != "trusted-roots.json" {
			t.Errorf("the stopped plugin left %s", file)
		}
	}
}

// A stopped plugin removes its sockets and leaves other files and its directory, which
// is a mount of its own in a pod.
func TestStopRemovesOwnFiles(t *testing.T) {
	t.Parallel()
	n := newNode(t, startCA(t))
	n.Stop()
	expectOnlyRoots(t, filepath.Dir(n.Socket()))
	for _, path := range []string{n.Socket(), n.RegistrationSocket()} {
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("%s still exists: %v", path, err)
		}
	}
	n.Start()
	note := filepath.Join(filepath.Dir(n.Socket()), "note")
	node.Must(t, os.WriteFile(note, nil, 0o600))
	n.Stop()
	if _, err := os.Stat(note); err != nil {
		t.Errorf("the plugin removed another file: %v", err)
	}

	// Likewise with a directory of another name.
	shared := filepath.Join(n.KubeletDir, "shared")
	node.Must(t, os.Mkdir(shared, 0o700))
	n.Flags = []string{"--csi-socket", filepath.Join(shared, "csi.sock")}
	n.Launch()
	node.Eventually(t, time.Minute, "the plugin listens", func() bool {
		_, err := os.Lstat(filepath.Join(shared, "csi.sock"))
		return err == nil
	})
	n.Stop()
	expectOnlyRoots(t, shared)
}
