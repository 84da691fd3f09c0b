package main

import (
	"context"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cluster is one cluster with its directory:
//
//	programs     a link to the programs that the cluster was started with
//	kubeconfig   for use on the machine
//	address      the API server's address on the machine
//	kubernetes   the minor version of Kubernetes
//	lock         held while the cluster runs
//	kubelet-dir  the kubelet's directory on the node
//	pid          the node's first process, in the machine's PID namespace
//	pki, config, etcd, kubelet, containerd, volumes, log, tmp
type cluster struct {
	name, cache string
}

// namePattern keeps the names of the directory and of the control group simple.
var namePattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,40}[a-z0-9])?$`)

func newCluster(name, cache string) (*cluster, error) {
	if !namePattern.MatchString(name) {
		return nil, fmt.Errorf("--name: %q is not a valid name: use at most 42 lower-case letters, digits and inner dashes", name)
	}
	cache, err := filepath.Abs(cache)
	return &cluster{name: name, cache: cache}, err
}

func (c *cluster) programsCache() string { return filepath.Join(c.cache, "programs") }
func (c *cluster) directory() string     { return filepath.Join(c.cache, "clusters", c.name) }
func (c *cluster) path(name string) string {
	return filepath.Join(c.directory(), name)
}

// checkKubernetes rejects another version than the cluster has: a version does not read
// what a later one has stored.
func (c *cluster) checkKubernetes(version string) error {
	has, err := os.ReadFile(c.path("kubernetes"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && string(has) != version {
		err = fmt.Errorf("the cluster %q has Kubernetes %s, not %s; remove it with: down, or use another --name", c.name, has, version)
	}
	return err
}

// prepare makes the directory of a new cluster, or reuses that of a stopped cluster.
func (c *cluster) prepare(programs, kubernetes, kubeletDirectory string) error {
	for _, name := range []string{"pki", "config", "etcd", "kubelet", "containerd", "log", "tmp"} {
		if err := os.MkdirAll(c.path(name), 0o755); err != nil {
			return err
		}
	}
	if err := os.Remove(c.path("programs")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(programs, c.path("programs")); err != nil {
		return err
	}
	if err := os.WriteFile(c.path("kubernetes"), []byte(kubernetes), 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(c.path("kubelet-dir"), []byte(kubeletDirectory), 0o644); err != nil {
		return err
	}
	if err := writePauseImage(c.path("pause.tar")); err != nil {
		return err
	}
	if _, err := os.Stat(c.path("kubeconfig")); err == nil {
		return nil
	}
	address, err := freeAddress()
	if err != nil {
		return err
	}
	if err := os.WriteFile(c.path("address"), []byte(address), 0o644); err != nil {
		return err
	}
	return c.writeCredentials(address)
}

// freeAddress returns a free loopback address. The cluster keeps this address, so that
// the kubeconfig works after a stop. The port is above the kernel's ephemeral ports: no
// outgoing connection takes it while the cluster is stopped.
func freeAddress() (address string, err error) {
	for range 100 {
		var listener net.Listener
		if listener, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 61000+rand.IntN(4500))); err == nil {
			return listener.Addr().String(), listener.Close()
		}
	}
	return "", err
}

// writeCredentials makes all certificates. It writes the administrator's kubeconfig
// last: prepare assumes that all credentials exist if that file exists.
func (c *cluster) writeCredentials(address string) error {
	p, err := newPKI(c.path("pki"))
	if err != nil {
		return err
	}
	if err := p.keyPair("service-account"); err != nil {
		return err
	}
	names := []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc." + clusterDomain, "localhost"}
	if _, _, err := p.certificate("apiserver", pkix.Name{CommonName: "kube-apiserver"}, names, "127.0.0.1", nodeIP, apiServiceIP); err != nil {
		return err
	}
	if _, _, err := p.certificate("apiserver-kubelet", pkix.Name{CommonName: "kube-apiserver", Organization: []string{"system:masters"}}, nil); err != nil {
		return err
	}
	if _, _, err := p.certificate("kubelet-server", pkix.Name{CommonName: nodeName}, []string{nodeName}, nodeIP); err != nil {
		return err
	}
	const inside = "https://127.0.0.1:6443"
	for _, k := range []struct{ path, server, user, group string }{
		{"config/kube-controller-manager", inside, "system:kube-controller-manager", ""},
		{"config/kube-scheduler", inside, "system:kube-scheduler", ""},
		{"config/kube-proxy", inside, "system:kube-proxy", "system:node-proxier"},
		{"config/kubelet", inside, "system:node:" + nodeName, "system:nodes"},
		{"config/admin", inside, "coredns-and-setup", "system:masters"},
		{"kubeconfig", "https://" + address, "admin", "system:masters"},
	} {
		if err := p.kubeconfig(c.path(k.path), k.server, k.user, k.group); err != nil {
			return err
		}
	}
	return giveToCaller(c.path("kubeconfig"))
}

// giveToCaller lets the user who has called sudo read the file.
func giveToCaller(path string) error {
	user, err := strconv.Atoi(os.Getenv("SUDO_UID"))
	if err != nil {
		return nil
	}
	return os.Chown(path, user, -1)
}

// running tells whether the outside process runs: that process holds the lock.
func (c *cluster) running() bool {
	file, err := os.OpenFile(c.path("lock"), os.O_RDWR, 0)
	if err != nil {
		return false
	}
	defer file.Close()
	return unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil
}

// startOutside starts the outside process as a daemon.
func (c *cluster) startOutside(owner int) error {
	log, err := os.OpenFile(c.path("log/cluster.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	command := exec.Command("/proc/self/exe", outsideCommand, c.directory(), strconv.Itoa(owner))
	command.Stdout, command.Stderr = log, log
	command.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := command.Start(); err != nil {
		return err
	}
	return command.Process.Release()
}

func (c *cluster) stop() error {
	if !c.running() {
		return nil
	}
	if err := c.kill(); err != nil {
		return err
	}
	for begin := time.Now(); c.running(); time.Sleep(20 * time.Millisecond) {
		if time.Since(begin) > 2*time.Minute {
			return fmt.Errorf("the cluster %q did not stop within two minutes; see %s", c.name, c.path("log/cluster.log"))
		}
	}
	return removeControlGroups(c.name)
}

// kill ends the node's first process, and with it every process, mount and
// interface of the node. The outside process ends with it.
func (c *cluster) kill() error {
	pid, err := c.nodePID()
	if err != nil {
		return err
	}
	return unix.Kill(pid, unix.SIGKILL)
}

func (c *cluster) nodePID() (int, error) {
	text, err := os.ReadFile(c.path("pid"))
	if err != nil || !c.running() {
		return 0, fmt.Errorf("the cluster %q is not running; start it with: up", c.name)
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

func (c *cluster) down() error {
	if err := c.stop(); err != nil {
		return err
	}
	if err := removeControlGroups(c.name); err != nil {
		return err
	}
	return os.RemoveAll(c.directory())
}

// load imports all images of the archives.
func (c *cluster) load(archives []string) error {
	for _, archive := range archives {
		file, err := os.Open(archive)
		if err != nil {
			return err
		}
		err = c.exec(file, "ctr", "--namespace", "k8s.io", "images", "import", "--local", "-")
		file.Close()
		if err != nil {
			return fmt.Errorf("load %s: %w", archive, err)
		}
	}
	return nil
}

// exec runs a command on the node, in all its namespaces.
func (c *cluster) exec(stdin io.Reader, command ...string) error {
	pid, err := c.nodePID()
	if err != nil {
		return err
	}
	nsenter := exec.Command("nsenter", append([]string{"--target", strconv.Itoa(pid), "--mount", "--pid", "--net", "--uts", "--ipc", "--wd=/", "--"}, command...)...)
	nsenter.Env = append(os.Environ(), "PATH="+nodePath)
	nsenter.Stdin, nsenter.Stdout, nsenter.Stderr = stdin, os.Stdout, os.Stderr
	return nsenter.Run()
}

// waitReady waits until the node is ready and setUpCluster has finished.
func (c *cluster) waitReady(limit time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	begin := time.Now()
	said := begin
	for {
		out, err := c.kubectl(ctx, "get", "--raw", "/api/v1/nodes/"+nodeName)
		ready := err == nil && strings.Contains(string(out), `"reason":"KubeletReady"`)
		if _, err := os.Stat(c.path("ready")); err == nil && ready {
			return nil
		}
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("the node is not ready after %s", limit)
		case time.Since(begin) > 30*time.Second && !c.running():
			return errors.New("the cluster has stopped")
		case time.Since(said) > 15*time.Second:
			fmt.Fprintf(os.Stderr, "  waiting for the node, %.0f s\n", time.Since(begin).Seconds())
			said = time.Now()
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func (c *cluster) kubectl(ctx context.Context, args ...string) ([]byte, error) {
	command := exec.CommandContext(ctx, filepath.Join(c.path("programs"), "kubectl"), append([]string{"--kubeconfig", c.path("kubeconfig"), "--request-timeout=5s"}, args...)...)
	return command.Output()
}
