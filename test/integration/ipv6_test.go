package integration

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/flexstack/step-csi/test/node"
	"github.com/flexstack/step-csi/test/realca"
)

// ipv6Only names the environment variable that makes the test's binary run in a network
// namespace whose only interface is a loopback without an IPv4 address. The value is the
// path of step-csi.
const (
	ipv6Only   = "STEP_CSI_TEST_IPV6_ONLY"
	ipv6StepCA = "STEP_CSI_TEST_STEP_CA"
)

// The addresses of the network. They are none of the loopback addresses, as in a cluster.
var ipv6Addresses = []string{"fd00::1", "fd00::2"}

// runIPv6Only runs the tests in the network namespace that the process is in.
func runIPv6Only(m *testing.M) int {
	hosts := "::1 localhost\n"
	for _, address := range ipv6Addresses {
		hosts += address + " " + authorityHost + "\n"
	}
	// The file that the parent has mounted there is deleted, and nothing can be mounted on it.
	if err := errors.Join(startIPv6Only(), syscall.Unmount("/etc/hosts", syscall.MNT_DETACH), addHosts(hosts)); err != nil {
		fmt.Fprintln(os.Stderr, "network with IPv6 only:", err)
		return 1
	}
	return m.Run()
}

// startIPv6Only starts the loopback interface, removes its IPv4 address, and adds those of
// IPv6. See netdevice(7) and ipv6(7).
func startIPv6Only() error {
	four, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(four)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING | unix.IFF_LOOPBACK)
	if err := unix.IoctlIfreq(four, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("start lo: %w", err)
	}
	if err := lo.SetInet4Addr(make([]byte, net.IPv4len)); err != nil {
		return err
	}
	if err := unix.IoctlIfreq(four, unix.SIOCSIFADDR, lo); err != nil {
		return fmt.Errorf("remove the IPv4 address: %w", err)
	}
	six, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(six)
	index, err := net.InterfaceByName("lo")
	if err != nil {
		return err
	}
	for _, text := range ipv6Addresses {
		request := struct { // in6_ifreq
			address [net.IPv6len]byte
			prefix  uint32
			index   int32
		}{netip.MustParseAddr(text).As16(), 64, int32(index.Index)}
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(six), unix.SIOCSIFADDR, uintptr(unsafe.Pointer(&request))); errno != 0 {
			return fmt.Errorf("add %s: %w", text, errno)
		}
	}
	return nil
}

// In a network with IPv6 only, volumes are published and renewed, from the real step-ca by
// its address, directly and through the registration authority.
func TestIPv6Only(t *testing.T) {
	t.Parallel()
	program, err := stepCA()
	node.Must(t, err)
	child := exec.Command("/proc/self/exe", "-test.run", "^TestInIPv6OnlyNetwork$", "-test.v", "-test.timeout", "5m")
	child.Env = append(os.Environ(), ipv6Only+"="+string(binary), ipv6StepCA+"="+program)
	child.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS}
	out, err := child.CombinedOutput()
	for _, want := range []string{"--- PASS: TestInIPv6OnlyNetwork/directly", "--- PASS: TestInIPv6OnlyNetwork/authority"} {
		if !strings.Contains(string(out), want) {
			err = errors.Join(err, errors.New("no "+want))
		}
	}
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestInIPv6OnlyNetwork is the part of TestIPv6Only in the network namespace.
func TestInIPv6OnlyNetwork(t *testing.T) {
	if os.Getenv(ipv6Only) == "" {
		return // TestIPv6Only runs it
	}
	if listener, err := net.Listen("tcp", "127.0.0.1:0"); err == nil {
		listener.Close()
		t.Fatal("the network has IPv4")
	}
	ca, err := realca.StartAt(os.Getenv(ipv6StepCA), t.TempDir(), ipv6Addresses[0])
	node.Must(t, err)
	t.Cleanup(func() {
		ca.Stop()
		if t.Failed() {
			t.Logf("step-ca's log:\n%s", ca.Log())
		}
	})
	if !strings.HasPrefix(ca.URL(), "https://[fd00::1]:") {
		t.Fatal(ca.URL())
	}
	published := func(t *testing.T, n *node.Node, p node.Pod) {
		n.Publish(p)
		first := read(t, n.Target(p)).leaf()
		node.Eventually(t, time.Minute, "a renewal", func() bool { return !read(t, n.Target(p)).leaf().Equal(first) })
		n.Unpublish(p)
	}
	t.Run("directly", func(t *testing.T) {
		n := node.New(t, binary, ca)
		n.ChangeConfig("https://[fd00::1]:", "https://[FD00:0::1]:")
		health := net.JoinHostPort("::1", freePort(t))
		n.Flags = []string{"--http-address", health}
		n.Start()
		published(t, n, node.Pod{Name: "web-0", Attributes: map[string]string{"service-names": "web", "duration": "12s"}})
		for _, path := range []string{"/livez", "/readyz", "/metrics"} {
			answer, err := http.Get("http://" + health + path)
			node.Must(t, err)
			_, err = io.Copy(io.Discard, answer.Body)
			answer.Body.Close()
			if err != nil || answer.StatusCode != http.StatusOK {
				t.Errorf("%s: %s, %v", path, answer.Status, err)
			}
		}
		// The address of the CA is reserved, in every spelling.
		n.Stop()
		config := filepath.Join(filepath.Dir(n.Config), "step-csi.yaml")
		text, err := os.ReadFile(config)
		node.Must(t, err)
		node.Must(t, os.WriteFile(config, append(text, "\npolicy: {validations: [{expression: 'true'}]}\n"...), 0o600))
		n.Start()
		err = n.TryPublish(node.Pod{Name: "web-1", Attributes: map[string]string{"ip-sans": "fd00:0:0::1"}})
		if err == nil || !strings.Contains(err.Error(), "fd00::1 is reserved") {
			t.Errorf("the CA's address: %v", err)
		}
		published(t, n, node.Pod{Name: "web-2", Attributes: map[string]string{"ip-sans": "fd00::7", "duration": "12s"}})
	})
	t.Run("authority", func(t *testing.T) {
		r := newAuthorities(t, ca)
		for i, address := range ipv6Addresses {
			r.replicas = append(r.replicas, r.prepare(address, ""))
			r.start(i)
			t.Cleanup(func() {
				r.stop(i)
				if t.Failed() {
					t.Logf("the log of replica %d:\n%s", i, r.replicas[i].logs)
				}
			})
		}
		for i := range ipv6Addresses {
			r.waitReady(i)
		}
		n := r.newNode()
		p := node.Pod{Name: "web-0", Attributes: map[string]string{"service-names": "web", "duration": "12s"}}
		r.admit(p)
		published(t, n, p)
	})
}
