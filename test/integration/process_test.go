package integration

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/stepca"
	"github.com/flexstack/step-csi/test/logs"
	"github.com/flexstack/step-csi/test/node"
)

func TestSockets(t *testing.T) {
	t.Parallel()
	n := newNode(t, startCA(t))
	for _, path := range []string{n.Socket(), n.RegistrationSocket()} {
		info, err := os.Lstat(path)
		node.Must(t, err)
		if info.Mode() != fs.ModeSocket|0o600 {
			t.Errorf("%s: %v", path, info.Mode())
		}
	}
	// A second plugin on the same socket refuses to start; the first keeps serving.
	out, err := binary.Command("node", "--config", n.Config, "--kubelet-dir", n.KubeletDir).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "another process serves on this socket") {
		t.Errorf("a second plugin on the same socket: %v: %s", err, out)
	}
	p := node.Pod{Name: "web-0"}
	n.Publish(p)
	n.Unpublish(p)
	// A killed plugin leaves its sockets behind; the next one replaces them.
	n.Kill()
	if _, err := os.Lstat(n.Socket()); err != nil {
		t.Errorf("the socket after a kill: %v", err)
	}
	n.Start()
	n.Stop()
	// A stopped plugin removes its sockets.
	for _, path := range []string{n.Socket(), n.RegistrationSocket()} {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s after a stop: %v", path, err)
		}
	}
	node.Must(t, os.WriteFile(n.Socket(), nil, 0o600))
	out, err = binary.Command("node", "--config", n.Config, "--kubelet-dir", n.KubeletDir).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "remove it") {
		t.Errorf("a file at the socket's path: %v: %s", err, out)
	}
	out, err = binary.Command("node", "--config", n.Config, "--kubelet-dir", n.KubeletDir, "--csi-socket", n.KubeletDir+strings.Repeat("/long", 20)).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "at most 107 bytes") {
		t.Errorf("a socket path that is too long: %v: %s", err, out)
	}
}

// The kubelet relies on these capabilities: without VOLUME_MOUNT_GROUP it changes
// the group of the files itself, and without the other two it never requests stats
// or health.
func TestCapabilities(t *testing.T) {
	n := newNode(t, startCA(t))
	answer, err := n.NodeGetCapabilities(t.Context(), &csi.NodeGetCapabilitiesRequest{})
	node.Must(t, err)
	var got []csi.NodeServiceCapability_RPC_Type
	for _, c := range answer.GetCapabilities() {
		got = append(got, c.GetRpc().GetType())
	}
	if want := []csi.NodeServiceCapability_RPC_Type{
		csi.NodeServiceCapability_RPC_VOLUME_MOUNT_GROUP,
		csi.NodeServiceCapability_RPC_GET_VOLUME_STATS,
		csi.NodeServiceCapability_RPC_GET_VOLUME_HEALTH,
	}; !slices.Equal(got, want) {
		t.Errorf("capabilities %v", got)
	}
	info, err := n.NodeGetInfo(t.Context(), &csi.NodeGetInfoRequest{})
	node.Must(t, err)
	if info.GetNodeId() != "node-1" {
		t.Errorf("node info %v", info)
	}
}

// The kubelet's plugin watcher makes these calls.
func TestRegistration(t *testing.T) {
	t.Parallel()
	n := newNode(t, startCA(t))
	connection, err := grpc.NewClient("unix://"+n.RegistrationSocket(),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	node.Must(t, err)
	defer connection.Close()
	client := registration.NewRegistrationClient(connection)
	info, err := client.GetInfo(t.Context(), &registration.InfoRequest{})
	node.Must(t, err)
	if info.GetType() != registration.CSIPlugin || info.GetName() != node.Driver || info.GetEndpoint() != n.Socket() || len(info.GetSupportedVersions()) != 1 {
		t.Errorf("plugin info %v", info)
	}
	for _, status := range []*registration.RegistrationStatus{{PluginRegistered: true}, {Error: "the name is taken"}} {
		_, err = client.NotifyRegistrationStatus(t.Context(), status)
		node.Must(t, err)
	}
	node.Eventually(t, time.Minute, "the plugin logs the registration and its failure", func() bool {
		return n.Logs.Has(logs.Registered) && n.Logs.Has("the name is taken")
	})
}

// Private keys appear only in the volume: in no other file, and not in the log.
func TestKeysStayInMemory(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	n := newNode(t, ca)
	var pods []node.Pod
	var secrets [][]byte
	remember := func(p node.Pod) {
		t.Helper()
		data, err := os.ReadFile(filepath.Join(n.Target(p), "tls.key"))
		node.Must(t, err)
		block, _ := pem.Decode(data)
		body := bytes.TrimSpace(data[bytes.IndexByte(data, '\n'):])
		secrets = append(secrets, bytes.SplitN(body, []byte("\n"), 2)[0], block.Bytes, []byte(hex.EncodeToString(block.Bytes)))
	}
	for _, keyType := range []string{"ecdsa-p256", "ed25519", "rsa-2048"} {
		p := node.Pod{Name: "key-" + keyType, Attributes: map[string]string{"key-type": keyType, "duration": "12s", "reuse-private-key": "true"}}
		n.Publish(p)
		remember(p)
		pods = append(pods, p)
	}
	n.Kill()
	n.Start()
	n.Republish()
	node.Eventually(t, time.Minute, "a renewal of each certificate", func() bool { return n.Logs.Count(logs.Renewed) >= len(pods) })
	_ = n.TryPublish(node.Pod{Name: "web-0", Attributes: map[string]string{"dns-names": "web.other"}})
	secrets = append(secrets, []byte("PRIVATE KEY"))
	for _, p := range pods {
		n.Unpublish(p)
	}
	_, password := ca.Provisioner()
	n.Stop()
	for _, secret := range secrets {
		if n.Logs.Has(string(secret)) {
			t.Error("the log contains a private key")
		}
	}
	if n.Logs.Has(password + "\n") {
		t.Error("the log contains the provisioner's password")
	}
	// Check all files that remain: the node's directory and temporary files.
	node.Must(t, filepath.WalkDir(filepath.Dir(n.KubeletDir), func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		content, err := os.ReadFile(path)
		for _, secret := range secrets {
			if bytes.Contains(content, secret) {
				t.Errorf("%s contains a private key", path)
			}
		}
		return err
	}))
}

// A stopped driver leaves no goroutine behind, even if it stops during calls and
// renewals.
func TestRunEndsEveryGoroutine(t *testing.T) {
	before := goleak.IgnoreCurrent()
	ca := startCA(t)
	defer func() { // goleak itself waits for less than a second
		var left error
		node.Eventually(t, time.Minute, "the end of every goroutine", func() bool {
			left = goleak.Find(before, goleak.IgnoreTopFunction("net/http.(*Server).Serve"), goleak.IgnoreAnyFunction("net/http.(*Server).ServeTLS"))
			return left == nil
		})
	}()
	defer ca.Stop()
	n := node.New(t, binary, ca)
	signer, err := stepca.New(stepca.Config{
		URL: ca.URL(), Fingerprint: ca.Fingerprint(), Provisioner: "admin",
		Password: func() ([]byte, error) { return []byte("password"), nil },
	})
	node.Must(t, err)
	defer signer.Close()
	i, err := issuer.New(issuer.Config{Signer: signer, Policy: func(context.Context, issuer.Pod, issuer.Request) error { return nil }})
	node.Must(t, err)
	_, stop := n.Serve(i)
	for _, p := range []node.Pod{{Name: "long-0"}, {Name: "short-0", Attributes: map[string]string{"duration": "2s"}}} {
		n.Publish(p)
		defer func() { node.Must(t, syscall.Unmount(n.Target(p), syscall.MNT_DETACH)) }()
	}
	time.Sleep(1500 * time.Millisecond)
	n.Close()
	stop()
}

// The plugin finishes calls in flight before it stops.
func TestGracefulStopFinishesCalls(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	n := newNode(t, ca)
	p := node.Pod{Name: "web-0"}
	release := slow(ca)
	published := make(chan error)
	go func() { published <- n.TryPublish(p) }()
	node.Eventually(t, time.Minute, "the CA receives the request", func() bool { return ca.Signs() == 1 })
	n.Signal(syscall.SIGTERM)
	time.Sleep(100 * time.Millisecond)
	close(release)
	node.Must(t, <-published)
	if err := n.Wait(); err != nil {
		t.Errorf("the plugin's exit: %v", err)
	}
	read(t, n.Target(p))
	n.Start()
	n.Unpublish(p)
}

func TestStopDuringConnect(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	ca.Stop()
	n := node.New(t, binary, ca)
	n.Launch()
	node.Eventually(t, time.Minute, "the plugin waits for its next attempt to connect", func() bool { return n.Logs.Has(logs.Waiting) })
	start := time.Now()
	n.Stop()
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("the plugin took %s to stop", took)
	}
	node.Must(t, ca.Resume())
}

// On a kernel without mount_setattr the plugin refuses to start and names the
// required version. A seccomp filter, which the plugin inherits, simulates such a
// kernel.
func TestOldKernelIsRefused(t *testing.T) {
	n := node.New(t, binary, startCA(t))
	result := make(chan string)
	go func() {
		// A thread cannot remove its filter. The goroutine never unlocks the thread, so
		// the runtime ends the thread with the goroutine.
		runtime.LockOSThread()
		if err := forbid(unix.SYS_MOUNT_SETATTR, unix.ENOSYS); err != nil {
			result <- err.Error()
			return
		}
		out, err := binary.Command("node", "--config", n.Config, "--kubelet-dir", n.KubeletDir).CombinedOutput()
		if err == nil {
			out = append(out, "it started"...)
		}
		result <- string(out)
	}()
	if out := <-result; !strings.Contains(out, "needs Linux 5.12 or later") {
		t.Errorf("got %s", out)
	}
}

// forbid makes a system call fail for this thread and the processes that it starts.
func forbid(call uintptr, errno unix.Errno) error {
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(call), Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(errno)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0)
}

func TestWithoutRootIsRefused(t *testing.T) {
	n := node.New(t, binary, startCA(t))
	node.Must(t, exposed(n.KubeletDir))
	node.Must(t, exposed(filepath.Dir(string(binary))))
	node.Must(t, os.Chmod(n.Config, 0o644))
	node.Must(t, os.Chmod(filepath.Join(filepath.Dir(n.Config), "password"), 0o644))
	command := binary.Command("node", "--config", n.Config, "--kubelet-dir", n.KubeletDir)
	command.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := command.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "not allowed to mount") {
		t.Errorf("%v: %s", err, out)
	}
}
