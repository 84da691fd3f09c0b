package integration

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/go-logr/logr"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"k8s.io/klog/v2"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/flexstack/step-csi/driver"
	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
	"github.com/flexstack/step-csi/issuer/stepca"
)

func TestSockets(t *testing.T) {
	n := newNode(t, startCA(t))
	for _, path := range []string{n.socket(), filepath.Join(n.kubeletDir, "plugins_registry", driverName+"-reg.sock")} {
		info, err := os.Lstat(path)
		must(t, err)
		if info.Mode() != fs.ModeSocket|0o600 {
			t.Errorf("%s: %v", path, info.Mode())
		}
	}
	// A second one is refused, and does the first no harm.
	out, err := exec.Command(binary, "node", "--config", n.config, "--kubelet-dir", n.kubeletDir).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "another process serves on this socket") {
		t.Errorf("a second one: %v: %s", err, out)
	}
	p := pod{name: "web-0"}
	n.publish(p)
	n.unpublish(p)
	// A killed one leaves its sockets, which the next one replaces.
	n.kill()
	if _, err := os.Lstat(n.socket()); err != nil {
		t.Errorf("the socket of a killed process: %v", err)
	}
	n.start()
	n.stop()
	// A stopped one leaves neither sockets nor the directory that it made.
	if _, err := os.Lstat(filepath.Dir(n.socket())); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory of a stopped process: %v", err)
	}
	must(t, os.Mkdir(filepath.Dir(n.socket()), 0o700))
	must(t, os.WriteFile(n.socket(), nil, 0o600))
	out, err = exec.Command(binary, "node", "--config", n.config, "--kubelet-dir", n.kubeletDir).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "remove it") {
		t.Errorf("a file in its place: %v: %s", err, out)
	}
	out, err = exec.Command(binary, "node", "--config", n.config, "--kubelet-dir", n.kubeletDir, "--csi-socket", n.kubeletDir+strings.Repeat("/long", 20)).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "at most 107 bytes") {
		t.Errorf("a path that is too long: %v: %s", err, out)
	}
}

// Without VOLUME_MOUNT_GROUP, the kubelet would try to change the group of the
// files itself; without the other two it would not ask.
func TestCapabilities(t *testing.T) {
	n := newNode(t, startCA(t))
	answer, err := n.NodeGetCapabilities(t.Context(), &csi.NodeGetCapabilitiesRequest{})
	must(t, err)
	var got []csi.NodeServiceCapability_RPC_Type
	for _, c := range answer.GetCapabilities() {
		got = append(got, c.GetRpc().GetType())
	}
	if want := []csi.NodeServiceCapability_RPC_Type{
		csi.NodeServiceCapability_RPC_VOLUME_MOUNT_GROUP,
		csi.NodeServiceCapability_RPC_GET_VOLUME_STATS,
		csi.NodeServiceCapability_RPC_GET_VOLUME_HEALTH,
	}; !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
	info, err := n.NodeGetInfo(t.Context(), &csi.NodeGetInfoRequest{})
	must(t, err)
	if info.GetNodeId() != "node-1" {
		t.Errorf("%v", info)
	}
}

// What the kubelet's plugin watcher does.
func TestRegistration(t *testing.T) {
	n := newNode(t, startCA(t))
	connection, err := grpc.NewClient("unix://"+filepath.Join(n.kubeletDir, "plugins_registry", driverName+"-reg.sock"),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	defer connection.Close()
	client := registration.NewRegistrationClient(connection)
	info, err := client.GetInfo(t.Context(), &registration.InfoRequest{})
	must(t, err)
	if info.GetType() != registration.CSIPlugin || info.GetName() != driverName || info.GetEndpoint() != n.socket() || len(info.GetSupportedVersions()) != 1 {
		t.Errorf("%v", info)
	}
	for _, status := range []*registration.RegistrationStatus{{PluginRegistered: true}, {Error: "the name is taken"}} {
		_, err = client.NotifyRegistrationStatus(t.Context(), status)
		must(t, err)
	}
	eventually(t, 15*time.Second, "the log has it", func() bool {
		return strings.Contains(n.logs.String(), "Registered with the kubelet") && strings.Contains(n.logs.String(), "the name is taken")
	})
}

// A private key is neither in a file that is not the volume's nor in the log.
func TestKeysStayInMemory(t *testing.T) {
	ca := startCA(t)
	n := newNode(t, ca)
	var pods []pod
	var secrets [][]byte
	remember := func(p pod) {
		t.Helper()
		data, err := os.ReadFile(filepath.Join(n.target(p), "tls.key"))
		must(t, err)
		block, _ := pem.Decode(data)
		body := bytes.TrimSpace(data[bytes.IndexByte(data, '\n'):])
		secrets = append(secrets, bytes.SplitN(body, []byte("\n"), 2)[0], block.Bytes, []byte(hex.EncodeToString(block.Bytes)))
	}
	for _, keyType := range []string{"ecdsa-p256", "ed25519", "rsa-2048"} {
		p := pod{name: "key-" + keyType, attributes: map[string]string{"key-type": keyType, "duration": "6s", "reuse-private-key": "true"}}
		n.publish(p)
		remember(p)
		pods = append(pods, p)
	}
	n.kill()
	n.start()
	eventually(t, 15*time.Second, "a rotation of each", func() bool { return strings.Count(n.logs.String(), `"Renewed"`) >= len(pods) })
	_ = n.tryPublish(pod{name: "web-0", attributes: map[string]string{"dns-names": "web.other"}})
	secrets = append(secrets, []byte("PRIVATE KEY"))
	for _, p := range pods {
		n.unpublish(p)
	}
	_, password := ca.Provisioner()
	n.stop()
	for _, secret := range secrets {
		if strings.Contains(n.logs.String(), string(secret)) {
			t.Error("the log has a key")
		}
	}
	if strings.Contains(n.logs.String(), password+"\n") {
		t.Error("the log has the provisioner's password")
	}
	// All that is left on the disk, of the node and of temporary files.
	must(t, filepath.WalkDir(filepath.Dir(n.kubeletDir), func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		content, err := os.ReadFile(path)
		for _, secret := range secrets {
			if bytes.Contains(content, secret) {
				t.Errorf("%s has a key", path)
			}
		}
		return err
	}))
}

// A stopped driver leaves no goroutine, also where calls and renewals were
// under way.
func TestRunEndsEveryGoroutine(t *testing.T) {
	before := goleak.IgnoreCurrent()
	ca := startCA(t)
	defer goleak.VerifyNone(t, before, goleak.IgnoreTopFunction("net/http.(*Server).Serve"), goleak.IgnoreAnyFunction("net/http.(*Server).ServeTLS"))
	defer ca.Stop()
	n := prepareNode(t, ca)
	signer, err := stepca.New(stepca.Config{
		URL: ca.URL(), Fingerprint: ca.Fingerprint(), Provisioner: "admin",
		Password: func() ([]byte, error) { return []byte("password"), nil },
	})
	must(t, err)
	defer signer.Close()
	i, err := issuer.New(issuer.Config{Signer: signer, Policy: func(context.Context, issuer.Pod, issuer.Request) error { return nil }})
	must(t, err)
	d, err := driver.New(driver.Config{
		Name: driverName, NodeName: "node-1", KubeletDir: n.kubeletDir, Socket: n.socket(), Register: true,
		ClusterDomain: names.Must(names.ParseClusterDomain("cluster.local")), TrustDomain: names.Must(names.ParseTrustDomain("cluster.local")),
		Issuers: map[string]driver.Issuer{"default": {Issuer: i, Bounds: attributes.Bounds{Default: time.Hour, Min: time.Second, Max: time.Hour}, RootsRefresh: time.Minute}},
	})
	must(t, err)
	ctx, stop := context.WithCancel(klog.NewContext(t.Context(), logr.Discard()))
	done := make(chan error)
	go func() { done <- d.Run(ctx) }()
	n.dial()
	for _, p := range []pod{{name: "long-0"}, {name: "short-0", attributes: map[string]string{"duration": "2s"}}} {
		n.publish(p)
		defer func() { must(t, syscall.Unmount(n.target(p), syscall.MNT_DETACH)) }()
	}
	time.Sleep(1500 * time.Millisecond)
	n.connection.Close()
	n.process = nil
	stop()
	must(t, <-done)
}

// Calls in flight are finished before the plugin ends.
func TestGracefulStopFinishesCalls(t *testing.T) {
	ca := startCA(t)
	n := newNode(t, ca)
	p := pod{name: "web-0"}
	release := slow(ca)
	published := make(chan error)
	go func() { published <- n.tryPublish(p) }()
	eventually(t, 15*time.Second, "the CA is asked", func() bool { return ca.Signs() == 1 })
	_ = n.process.Process.Signal(syscall.SIGTERM)
	time.Sleep(100 * time.Millisecond)
	close(release)
	must(t, <-published)
	if err := n.process.Wait(); err != nil {
		t.Error(err)
	}
	n.connection.Close()
	n.process = nil
	read(t, n.target(p))
	n.start()
	n.unpublish(p)
}

func TestSecondSignalIsNotNeeded(t *testing.T) {
	ca := startCA(t)
	ca.Stop()
	n := prepareNode(t, ca)
	n.launch()
	time.Sleep(300 * time.Millisecond) // it is waiting to connect again
	start := time.Now()
	n.stop()
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("it took %s to stop", took)
	}
	must(t, ca.Resume())
}

// On a kernel without mount_setattr the start is refused with the version that
// is needed. The kernel is made one by a seccomp filter, which the plugin
// inherits.
func TestOldKernelIsRefused(t *testing.T) {
	n := prepareNode(t, startCA(t))
	result := make(chan string)
	go func() {
		// The filter cannot be taken off a thread; the thread ends with this.
		runtime.LockOSThread()
		if err := forbid(unix.SYS_MOUNT_SETATTR, unix.ENOSYS); err != nil {
			result <- err.Error()
			return
		}
		out, err := exec.Command(binary, "node", "--config", n.config, "--kubelet-dir", n.kubeletDir).CombinedOutput()
		if err == nil {
			out = append(out, "it started"...)
		}
		result <- string(out)
	}()
	if out := <-result; !strings.Contains(out, "needs Linux 5.12 or later") {
		t.Errorf("got %s", out)
	}
}

// forbid makes a system call fail for this thread and what it starts.
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
	n := prepareNode(t, startCA(t))
	must(t, exposed(n.kubeletDir))
	must(t, exposed(filepath.Dir(binary)))
	must(t, os.Chmod(n.config, 0o644))
	must(t, os.Chmod(filepath.Join(filepath.Dir(n.config), "password"), 0o644))
	command := exec.Command(binary, "node", "--config", n.config, "--kubelet-dir", n.kubeletDir)
	command.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := command.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "not allowed to mount") {
		t.Errorf("%v: %s", err, out)
	}
}
