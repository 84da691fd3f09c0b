// Package integration tests the real binary as a process, on real tmpfs mounts, with
// a real step-ca.
package integration

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/flexstack/step-csi/test/embeddedca"
	"github.com/flexstack/step-csi/test/node"
	"github.com/flexstack/step-csi/test/realca"
	"github.com/flexstack/step-csi/test/sandbox"
)

// binary is the step-csi binary, built once for all tests.
var binary node.Binary

// stepCA builds the real step-ca once for all tests that need it, and returns the
// path of the binary.
var stepCA = sync.OnceValues(func() (string, error) { return realca.Build(filepath.Dir(string(binary))) })

func TestMain(m *testing.M) {
	if directory := os.Getenv(serverOf); directory != "" {
		runServer(directory)
	}
	if attack := os.Getenv(containerAttack); attack != "" {
		runContainer(attack)
	}
	if built := os.Getenv(ipv6Only); built != "" {
		binary = node.Binary(built)
		os.Exit(runIPv6Only(m))
	}
	sandbox.Enter()
	// Most tests spend their time waiting, so they run in parallel. Ginkgo, which the
	// sanity test imports, rejects -test.parallel on the command line.
	if err := flag.Lookup("test.parallel").Value.Set("16"); err != nil {
		panic(err)
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	// By default, the race detector makes a process sleep for a second before it
	// exits.
	os.Setenv("GORACE", "atexit_sleep_ms=0")
	if err := addHosts("127.0.0.1 localhost\n127.0.0.1 " + authorityHost + "\n127.0.0.2 " + authorityHost + "\n127.0.0.1 " + fleetingHost + "\n"); err != nil {
		fmt.Fprintln(os.Stderr, "add hosts:", err)
		return 1
	}
	return node.Run(m, &binary, node.HasRaceDetector())
}

// addHosts maps the tests' host names to their addresses, inside the sandbox.
func addHosts(lines string) error {
	directory, err := os.MkdirTemp("", "step-csi-hosts-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(directory) // the bind mount keeps the file
	hosts := filepath.Join(directory, "hosts")
	if err := os.WriteFile(hosts, []byte(lines), 0o644); err != nil {
		return err
	}
	return syscall.Mount(hosts, "/etc/hosts", "", syscall.MS_BIND, "")
}

func startCA(t testing.TB) *embeddedca.CA {
	t.Helper()
	ca, err := embeddedca.Start(embeddedca.Config{})
	node.Must(t, err)
	t.Cleanup(ca.Stop)
	return ca
}

// newNode starts a plugin that uses the CA.
func newNode(t testing.TB, ca node.CA) *node.Node {
	t.Helper()
	n := node.New(t, binary, ca)
	n.Start()
	return n
}
