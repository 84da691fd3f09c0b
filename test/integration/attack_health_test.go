package integration

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/flexstack/step-csi/test/node"
)

// Pods open thousands of connections to the port of health and metrics. Some send nothing,
// some send half of a request, and some ask for the metrics again and again and do not
// read them. Neither process uses much memory, and the kubelet's probes are answered. The
// chart limits the node plugin to 256 MiB.
func TestConnectionsToTheHealthPort(t *testing.T) {
	t.Parallel()
	const mostMemory = 128 // MiB
	ca := startCA(t)
	// The race detector multiplies the memory of a process.
	directory := filepath.Join(filepath.Dir(string(binary)), "plain")
	node.Must(t, os.Mkdir(directory, 0o755))
	plain, err := node.Build(directory, false)
	node.Must(t, err)
	r := newAuthorities(t, ca)
	r.binary = plain
	r.startReplicas(1, "")
	n := r.prepareNode()
	n.Binary = plain
	address := "127.0.0.1:" + freePort(t)
	n.Flags = []string{"--http-address", address}
	n.Start()
	header := "GET /livez HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 7000)
	scrapes := strings.Repeat("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 40)
	for name, target := range map[string]struct {
		address string
		pid     int
	}{"plugin": {address, n.Process.Process.Pid}, "authority": {r.replicas[0].http, r.replicas[0].process.Process.Pid}} {
		t.Run(name, func(t *testing.T) {
			for round := range 6 {
				for i := range 1000 {
					dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, byte(1+round), byte(1+i%50))}}
					connection, err := dialer.Dial("tcp", target.address)
					if err != nil {
						continue // evicted before the client knew that it was connected
					}
					defer connection.Close()
					_, _ = io.WriteString(connection, []string{"", header, scrapes}[i%3])
				}
				for _, path := range []string{"/livez", "/readyz"} {
					if err := probe("http://" + target.address + path); err != nil {
						t.Errorf("after %d connections: %v", 1000*(round+1), err)
					}
				}
			}
			if used := peakMemory(t, target.pid); used > mostMemory {
				t.Errorf("the process used %d MiB", used)
			} else {
				t.Logf("the process used %d MiB at most", used)
			}
		})
	}
}

// probe sends a request like the kubelet, with a new connection.
func probe(url string) error {
	client := http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Get(url)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, answer.Status)
	}
	return nil
}

// peakMemory returns the largest resident set of the process so far, in MiB.
func peakMemory(t *testing.T, pid int) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	node.Must(t, err)
	found := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(status)
	if found == nil {
		t.Fatalf("no VmHWM in\n%s", status)
	}
	kilobytes, err := strconv.Atoi(string(found[1]))
	node.Must(t, err)
	return kilobytes / 1024
}
