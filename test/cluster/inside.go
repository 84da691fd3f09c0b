package main

import (
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Names and addresses inside the node. All clusters use the same values, because
// namespaces separate them.
const (
	nodeName      = "node"
	nodeIP        = "172.31.255.1"
	podRange      = "10.244.0.0/16"
	serviceRange  = "10.96.0.0/16"
	apiServiceIP  = "10.96.0.1"
	dnsServiceIP  = "10.96.0.10"
	clusterDomain = "cluster.local"

	kubeletDirectory = "/var/lib/kubelet"

	stateDirectory    = "/run/cluster/state"
	programsDirectory = "/run/cluster/programs"
	nodePath          = programsDirectory + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

	// apiSocket is the socket on which the machine reaches the node's API server.
	apiSocket = "api.sock"
)

// runInside is the node's first process. When it ends, the kernel kills all other
// processes and removes the mounts and the network.
func runInside(directory string) error {
	log.SetFlags(log.LstdFlags | log.Lmicroseconds)
	if err := setUpMounts(directory); err != nil {
		return fmt.Errorf("mounts: %w", err)
	}
	if err := unix.Sethostname([]byte(nodeName)); err != nil {
		return err
	}
	if err := setUpNetwork(); err != nil {
		return fmt.Errorf("network: %w", err)
	}
	kubelet, err := linkKubeletDirectory()
	if err != nil {
		return err
	}
	os.Clearenv()
	for _, variable := range [][2]string{{"PATH", nodePath}, {"HOME", "/root"}, {"TMPDIR", stateDirectory + "/tmp"}} {
		os.Setenv(variable[0], variable[1])
	}
	cni, err := cniPlugins()
	if err != nil {
		return err
	}
	if err := writeConfiguration(filepath.Base(directory), cni); err != nil {
		return err
	}
	listener, err := net.Listen("unix", filepath.Join(stateDirectory, apiSocket))
	if err != nil {
		return err
	}
	go forwardToAPI(listener)

	s := &supervisor{pids: map[int]bool{}}
	go s.reap()
	for _, component := range components(kubelet) {
		go s.keep(component)
	}
	if err := s.setUpCluster(); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(stateDirectory, "ready"), nil, 0o644); err != nil {
		return err
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, unix.SIGINT, unix.SIGTERM)
	<-stop
	return nil
}

// setUpMounts gives the node its own /run, /var/lib and /var/log. It makes the mounts
// private first, and shares each mount separately at the end, so that a volume is
// mounted only once.
func setUpMounts(directory string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	// Keep the directory open, because the new mounts may cover it.
	state, err := cloneTree(directory)
	if err != nil {
		return err
	}
	programs, err := cloneTree(filepath.Join(directory, "programs"))
	if err != nil {
		return err
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return err
	}
	for _, target := range []string{"/run", "/var/lib"} {
		if err := unix.Mount("tmpfs", target, "tmpfs", 0, "mode=755"); err != nil {
			return fmt.Errorf("%s: %w", target, err)
		}
	}
	if err := attach(state, stateDirectory); err != nil {
		return err
	}
	if err := attach(programs, programsDirectory); err != nil {
		return err
	}
	for source, target := range map[string]string{"kubelet": kubeletDirectory, "containerd": "/var/lib/containerd", "log": "/var/log"} {
		if err := os.MkdirAll(target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(filepath.Join(stateDirectory, source), target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("%s: %w", target, err)
		}
	}
	if err := coverSettings(); err != nil {
		return err
	}
	if err := mountUncovered(); err != nil {
		return err
	}
	return unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "")
}

func cloneTree(path string) (int, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("open_tree %s: %w", path, err)
	}
	return fd, nil
}

func attach(tree int, target string) error {
	defer unix.Close(tree)
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	return unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// coverSettings mounts the kernel settings that the kubelet expects, so that the
// kubelet does not change the machine's settings.
func coverSettings() error {
	for name, value := range map[string]string{
		"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1",
		"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
	} {
		cover := filepath.Join("/run/cluster/sys", name)
		if err := os.MkdirAll(filepath.Dir(cover), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(cover, []byte(value+"\n"), 0o644); err != nil {
			return err
		}
		target := filepath.Join("/proc/sys", name)
		if err := unix.Mount(cover, target, "", unix.MS_BIND, ""); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("%s: %w", target, err)
		}
	}
	return nil
}

// linkKubeletDirectory returns the path that the kubelet uses for its directory.
func linkKubeletDirectory() (string, error) {
	text, err := os.ReadFile(filepath.Join(stateDirectory, "kubelet-dir"))
	path := string(text)
	if err != nil || path == kubeletDirectory {
		return path, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", err
	}
	return path, os.Symlink(kubeletDirectory, path)
}

// mountUncovered mounts a proc and a sysfs that nothing covers. Without them, the kernel
// does not let a pod with its own user namespace mount its proc and sysfs.
func mountUncovered() error {
	for _, kind := range []string{"proc", "sysfs"} {
		target := filepath.Join("/run/cluster/uncovered", kind)
		if err := os.MkdirAll(target, 0o700); err != nil {
			return err
		}
		if err := unix.Mount(kind, target, kind, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
			return fmt.Errorf("%s: %w", target, err)
		}
	}
	return nil
}

func forwardToAPI(listener net.Listener) {
	for {
		from, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer from.Close()
			to, err := net.Dial("tcp", "127.0.0.1:6443")
			if err != nil {
				return
			}
			defer to.Close()
			join(from, to)
		}()
	}
}

// supervisor keeps the components running, like systemd.
type supervisor struct {
	mu   sync.Mutex
	pids map[int]bool // of the components themselves
}

// keep starts the component, and restarts it whenever it ends.
func (s *supervisor) keep(c component) {
	output, err := os.OpenFile(filepath.Join("/var/log", c.name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		log.Fatal(err)
	}
	for {
		command := exec.Command(c.name, c.args...)
		command.Stdout, command.Stderr = output, output
		err := s.run(command)
		log.Printf("%s ended: %v", c.name, err)
		time.Sleep(500 * time.Millisecond)
	}
}

func (s *supervisor) run(command *exec.Cmd) error {
	s.mu.Lock()
	err := command.Start()
	if err == nil {
		s.pids[command.Process.Pid] = true
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	err = command.Wait()
	s.mu.Lock()
	delete(s.pids, command.Process.Pid)
	s.mu.Unlock()
	return err
}

// reap reaps orphaned processes: the first process of a PID namespace inherits them.
func (s *supervisor) reap() {
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, unix.SIGCHLD)
	for range ended {
		entries, _ := os.ReadDir("/proc")
		for _, entry := range entries {
			s.reapOne(entry.Name())
		}
	}
}

func (s *supervisor) reapOne(name string) {
	var pid int
	if _, err := fmt.Sscanf(name, "%d", &pid); err != nil || pid == 1 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.pids[pid] {
		unix.Wait4(pid, nil, unix.WNOHANG, nil)
	}
}

// setUpCluster imports the pause image, and applies the cluster's objects.
func (s *supervisor) setUpCluster() error {
	images := []string{"--namespace", "k8s.io", "images", "import", "--local", stateDirectory + "/pause.tar"}
	if err := s.retry("ctr", images...); err != nil {
		return err
	}
	return s.retry("kubectl", "--kubeconfig", stateDirectory+"/config/admin", "apply", "--server-side",
		"-f", stateDirectory+"/config/dns.yaml", "-f", stateDirectory+"/config/storage.yaml")
}

func (s *supervisor) retry(name string, args ...string) error {
	for begin := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		var out logBuffer
		command := exec.Command(name, args...)
		command.Stdout, command.Stderr = &out, &out
		err := s.run(command)
		if err == nil {
			return nil
		}
		if time.Since(begin) > 3*time.Minute {
			return fmt.Errorf("%s: %w: %s", name, err, out.text)
		}
	}
}

// logBuffer keeps the last write.
type logBuffer struct{ text string }

func (b *logBuffer) Write(p []byte) (int, error) {
	b.text = string(p)
	return len(p), nil
}

var _ io.Writer = (*logBuffer)(nil)
