// Command step-csi-cluster runs a real one-node Kubernetes on a bare Linux
// machine: etcd, API server, controller manager, scheduler, kubelet, kube-proxy,
// containerd and CoreDNS, as processes in their own namespaces. It does not touch the
// machine's containers, kubelet, network and files. Several clusters can run side by
// side.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

const usage = `step-csi-cluster runs a real one-node Kubernetes on a bare Linux machine.

Usage: step-csi-cluster [--name NAME] COMMAND

  up                 build missing programs, start the cluster, and wait until it is ready
  down               stop the cluster and remove all its files
  stop               stop the cluster like a power failure; "up" starts it with its state
  load ARCHIVE...    import images from OCI or docker archives
  env                print the shell variables for kubectl and helm
  exec CMD [ARG...]  run a command on the node
  build              only build the programs
  suite              build Kubernetes' external storage suite, and print its path

Images must be loaded, because the node reaches no registry. There are twenty persistent
volumes, of the default StorageClass.

Flags:

  --name NAME        name of the cluster                       (step-csi)
  --kubernetes 1.34  version of Kubernetes, 1.34 or 1.37       (1.37)
  --owner PID        with up: remove the cluster when this process ends
  --kubelet-dir DIR  with up: the kubelet's directory   (/var/lib/kubelet)
                     any other is a symbolic link to /var/lib/kubelet
  --source DIR       source of the cluster's programs          (test/cluster)
  --cache DIR        programs and clusters  ($XDG_CACHE_HOME/step-csi, else ~/.cache/step-csi)
`

func main() {
	// The same program also runs in the pause image, outside and inside the node.
	switch {
	case os.Args[0] == "/pause":
		pause()
	case len(os.Args) == 4 && os.Args[1] == outsideCommand:
		exit(runOutside(os.Args[2], os.Args[3]))
	case len(os.Args) == 3 && os.Args[1] == insideCommand:
		exit(runInside(os.Args[2]))
	default:
		exit(run(os.Args[1:]))
	}
}

func exit(err error) {
	var status *exec.ExitError
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		os.Exit(0)
	case errors.As(err, &status) && status.Exited():
		os.Exit(status.ExitCode())
	}
	fmt.Fprintf(os.Stderr, "step-csi-cluster: %v\n", err)
	os.Exit(1)
}

func run(args []string) error {
	flags := flag.NewFlagSet("step-csi-cluster", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	name := flags.String("name", "step-csi", "")
	kubernetes := flags.String("kubernetes", defaultKubernetes, "")
	owner := flags.Int("owner", 0, "")
	kubeletDir := flags.String("kubelet-dir", kubeletDirectory, "")
	source := flags.String("source", "test/cluster", "")
	cache := flags.String("cache", "", "")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		fmt.Print(usage)
		return err
	} else if err != nil {
		return fmt.Errorf("%w\n\n%s", err, usage)
	}
	if path := *kubeletDir; path != filepath.Clean(path) || !strings.HasPrefix(path, "/var/lib/") {
		return fmt.Errorf("--kubelet-dir: %q is not below /var/lib, where the node has its own files", path)
	}
	if *cache == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			return fmt.Errorf("%w; or set --cache", err)
		}
		*cache = filepath.Join(base, "step-csi")
	}
	c, err := newCluster(*name, *cache)
	if err != nil {
		return err
	}
	modfile, ok := moduleFiles[*kubernetes]
	if !ok {
		return fmt.Errorf("--kubernetes: there is no version %q; use one of %s", *kubernetes, strings.Join(slices.Sorted(maps.Keys(moduleFiles)), ", "))
	}
	rest := flags.Args()
	if len(rest) == 0 {
		return fmt.Errorf("the command is missing\n\n%s", usage)
	}
	command, rest := rest[0], rest[1:]
	switch command {
	case "load", "exec":
		if len(rest) == 0 {
			return fmt.Errorf("%s: the argument is missing\n\n%s", command, usage)
		}
	default:
		if len(rest) > 0 {
			return fmt.Errorf("%s: unexpected argument %q\n\n%s", command, rest[0], usage)
		}
	}
	switch command {
	case "up":
		return c.up(*source, *kubernetes, *kubeletDir, *owner)
	case "down":
		return c.down()
	case "stop":
		return c.stop()
	case "load":
		return c.load(rest)
	case "env":
		return c.printEnvironment(os.Stdout)
	case "exec":
		return c.exec(os.Stdin, rest...)
	case "build":
		_, err := buildPrograms(*source, modfile, c.programsCache(), os.Stderr)
		return err
	case "suite":
		path, err := buildSuite(*source, modfile, c.programsCache(), os.Stderr)
		if err == nil {
			fmt.Println(path)
		}
		return err
	}
	return fmt.Errorf("unknown command %q\n\n%s", command, usage)
}

// up starts the cluster and waits until it can run pods.
func (c *cluster) up(source, kubernetes, kubeletDirectory string, owner int) error {
	if err := checkMachine(); err != nil {
		return err
	}
	if err := c.checkKubernetes(kubernetes); err != nil {
		return err
	}
	begin := time.Now()
	programs, err := buildPrograms(source, moduleFiles[kubernetes], c.programsCache(), os.Stderr)
	if err != nil {
		return err
	}
	if c.running() {
		fmt.Fprintf(os.Stderr, "The cluster %q is already running.\n", c.name)
		return c.printEnvironment(os.Stdout)
	}
	if err := c.prepare(programs, kubernetes, kubeletDirectory); err != nil {
		return err
	}
	if err := c.startOutside(owner); err != nil {
		return err
	}
	if err := c.waitReady(5 * time.Minute); err != nil {
		return fmt.Errorf("%w; the logs are in %s", err, c.path("log"))
	}
	fmt.Fprintf(os.Stderr, "The cluster %q is ready after %.0f s. To use it with kubectl and helm:\n\n", c.name, time.Since(begin).Seconds())
	return c.printEnvironment(os.Stdout)
}

// checkMachine reports all missing packages in one error.
func checkMachine() error {
	if runtime.GOOS != "linux" || os.Geteuid() != 0 {
		return errors.New("step-csi-cluster needs Linux, and root for namespaces and mounts: run it with sudo -E")
	}
	var missing []string
	for program, pack := range map[string]string{"iptables": "iptables", "nsenter": "util-linux", "gcc": "gcc", "pkg-config": "pkg-config"} {
		if _, err := exec.LookPath(program); err != nil {
			missing = append(missing, pack)
		}
	}
	for header, pack := range map[string]string{"stdio.h": "libc6-dev", "seccomp.h": "libseccomp-dev"} {
		if _, err := os.Stat(filepath.Join("/usr/include", header)); err != nil {
			missing = append(missing, pack)
		}
	}
	if _, err := cniPlugins(); err != nil {
		missing = append(missing, "containernetworking-plugins")
	}
	if len(missing) > 0 {
		slices.Sort(missing)
		return fmt.Errorf("required packages are missing; on Debian or Ubuntu: apt-get install %s", strings.Join(missing, " "))
	}
	return nil
}

// cniPlugins returns the distribution's directory of CNI plugins.
func cniPlugins() (string, error) {
	for _, directory := range []string{"/usr/lib/cni", "/usr/libexec/cni", "/opt/cni/bin"} {
		if _, err := os.Stat(filepath.Join(directory, "ptp")); err == nil {
			return directory, nil
		}
	}
	return "", errors.New("found no CNI plugins")
}

func (c *cluster) printEnvironment(w io.Writer) error {
	programs, err := os.Readlink(c.path("programs"))
	if err != nil {
		return fmt.Errorf("there is no cluster %q; start it with: up", c.name)
	}
	_, err = fmt.Fprintf(w, "export KUBECONFIG=%s\nexport PATH=%s:$PATH\n", c.path("kubeconfig"), programs)
	return err
}
