package integration

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flexstack/step-csi/driver/tmpfs"
	"github.com/flexstack/step-csi/test/embeddedca"
	"github.com/flexstack/step-csi/test/logs"
	"github.com/flexstack/step-csi/test/node"
)

// containerAttack is the variable that makes the test binary a container with
// CAP_SYS_ADMIN, which attacks the volume in its working directory.
const containerAttack = "STEP_CSI_TEST_CONTAINER"

// attackedFiles are those of a volume that is attacked.
var attackedFiles = []string{"tls.crt", "tls.key", "ca.crt", "keystore.p12", "keystore-password"}

// containerAttacks change a volume that is mounted writable in the working directory.
var containerAttacks = map[string]func() error{
	"another pod's record": func() error {
		return forge(func(record map[string]any) {
			record["pod"] = map[string]any{"namespace": "prod", "name": "db-0", "uid": "uid-db-0", "serviceAccount": "db", "node": "node-1"}
			record["attributes"] = map[string]string{"duration": "3s", "dns-names": "db.prod"}
			record["issued"], record["notAfter"] = time.Now().Add(-time.Hour), time.Now()
		})
	},
	"another volume's id": func() error {
		return forge(func(record map[string]any) { record["volumeID"] = honest.VolumeID() })
	},
	"another volume's path": func() error {
		return forge(func(record map[string]any) {
			record["target"] = strings.Replace(record["target"].(string), "/uid-", "/uid-none-", 1)
		})
	},
	"a record from the future": func() error {
		return forge(func(record map[string]any) {
			record["issued"], record["notAfter"] = time.Now().AddDate(5000, 0, 0), time.Now().AddDate(7000, 0, 0)
		})
	},
	"no record":     func() error { return unix.Removexattr(".", "trusted.step-csi") },
	"a huge record": func() error { return unix.Setxattr(".", "trusted.step-csi", make([]byte, 60<<10), 0) },
	"a deep record": func() error { return setRecord(strings.Repeat(`{"pod":`, 2000)) },
	"long names": func() error {
		return setRecord(`{"volumeID":"x","target":"x","pod":{"name":"` + strings.Repeat("x", 15<<10) + `"}}`)
	},
	"pipes":          replacing(func(path string) error { return syscall.Mkfifo(path, 0o666) }),
	"devices":        replacing(func(path string) error { return syscall.Mknod(path, syscall.S_IFCHR|0o666, int(unix.Mkdev(1, 5))) }),
	"directories":    replacing(func(path string) error { return os.MkdirAll(path+"/full", 0o755) }),
	"links outside":  replacing(func(path string) error { return os.Symlink("/etc/hosts", path) }),
	"links upwards":  replacing(func(path string) error { return os.Symlink("../../../../../../../../../../etc/hosts", path) }),
	"endless links":  replacing(func(path string) error { return os.Symlink(filepath.Base(path), path) }),
	"a terabyte":     replacing(func(path string) error { return errors.Join(os.WriteFile(path, nil, 0o444), os.Truncate(path, 1<<40)) }),
	"nothing":        replacing(func(string) error { return nil }),
	"a set of pipes": swapping(func() error { return syscall.Mkfifo("..data", 0o666) }),
	"a set outside":  swapping(func() error { return os.Symlink("/etc", "..data") }),
	"a set above":    swapping(func() error { return os.Symlink("../../..", "..data") }),
	"a set itself":   swapping(func() error { return os.Symlink(".", "..data") }),
	"a directory as the set": swapping(func() error {
		return errors.Join(os.Mkdir("..data", 0o755), os.WriteFile("..data/file", nil, 0o444))
	}),
	"thousands of names": func() error {
		if err := unix.Mount("", ".", "", unix.MS_REMOUNT, "size=1g,nr_inodes=100000"); err != nil {
			return err
		}
		for i := range 20000 {
			if err := os.Symlink("x", fmt.Sprint("..", i)); err != nil {
				return err
			}
		}
		return nil
	},
	"thousands of names in a set": func() error {
		if err := errors.Join(unix.Mount("", ".", "", unix.MS_REMOUNT, "size=1g,nr_inodes=100000"), os.Mkdir("..set", 0o755)); err != nil {
			return err
		}
		for i := range 20000 {
			if err := os.Symlink("x", fmt.Sprint("..set/", i)); err != nil {
				return err
			}
		}
		return nil
	},
	"deep directories": func() error {
		if err := unix.Mount("", ".", "", unix.MS_REMOUNT, "size=1g,nr_inodes=100000"); err != nil {
			return err
		}
		for range 10000 {
			if err := errors.Join(os.Mkdir("..deep", 0o755), os.Chdir("..deep")); err != nil {
				return err
			}
		}
		return nil
	},
	"a full volume": func() error {
		file, err := os.Create("filler")
		if err == nil {
			_, err = io.CopyN(file, zeros{}, 2<<20)
			file.Close()
		}
		if errors.Is(err, unix.ENOSPC) {
			err = nil
		}
		return err
	},
	// The user who owns the files needs no capability for this.
	"a full volume of their owner": func() (err error) {
		as(filesOwner, func() {
			var file *os.File
			if file, err = os.OpenFile("tls.key", os.O_WRONLY, 0); err == nil {
				_, err = io.CopyN(file, zeros{}, 2<<20)
				file.Close()
			}
			if errors.Is(err, unix.ENOSPC) {
				err = errors.Join(os.Chmod("tls.key", 0), os.WriteFile("keystore-password", []byte("\x00\n"), 0))
			}
		})
		return err
	},
	"a read-only file system": func() error { return unix.Mount("", ".", "", unix.MS_REMOUNT|unix.MS_RDONLY, "") },
	// A process that opens a file with a lease waits for the holder of the lease.
	"leases": func() error {
		for _, name := range attackedFiles {
			file, err := os.OpenFile(name, os.O_RDWR, 0)
			if err != nil {
				return err
			}
			// The descriptor stays open as long as the process lives.
			if _, err := unix.FcntlInt(file.Fd(), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
				return fmt.Errorf("lease: %w", err)
			}
		}
		return nil
	},
}

// signings lets a test hold the signing requests of one pod at the CA, so that the plugin
// writes nothing into the pod's volume meanwhile.
type signings struct {
	mu   sync.Mutex
	free *sync.Cond
	held string         // the common name, which is the pod's UID
	let  map[string]int // requests that were not held, by common name
}

func interceptSignings(ca *embeddedca.CA) *signings {
	s := &signings{let: map[string]int{}}
	s.free = sync.NewCond(&s.mu)
	ca.Intercept(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost {
				body, _ := io.ReadAll(r.Body)
				r.Body = io.NopCloser(bytes.NewReader(body))
				s.wait(requested(body))
			}
			next.ServeHTTP(w, r)
		})
	})
	return s
}

// requested returns the common name in a signing request.
func requested(body []byte) string {
	var request struct {
		CSR string `json:"csr"`
	}
	if err := json.Unmarshal(body, &request); err != nil {
		return ""
	}
	block, _ := pem.Decode([]byte(request.CSR))
	if block == nil {
		return ""
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return ""
	}
	return csr.Subject.CommonName
}

func (s *signings) wait(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.held == name && name != "" {
		s.free.Wait()
	}
	s.let[name]++
}

// hold holds the requests of this UID, or none if it is empty. It returns how many requests of
// the UID came before.
func (s *signings) hold(uid string) (before int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = uid
	s.free.Broadcast()
	return s.let[uid]
}

// without calls do while no renewal of the pod's volume is in progress.
func (s *signings) without(n *node.Node, p node.Pod, do func()) {
	n.T.Helper()
	renewals := s.hold(p.ID()) - 1
	defer s.hold("")
	pod := `pod="shop/` + p.Name + `"`
	node.Eventually(n.T, time.Minute, "the end of the renewal in progress", func() bool {
		return n.Logs.Count(logs.Renewed, pod)+n.Logs.Count(logs.RenewalFailed, pod) >= renewals
	})
	do()
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// forge changes the record.
func forge(change func(map[string]any)) error {
	data := make([]byte, 64<<10)
	n, err := unix.Getxattr(".", "trusted.step-csi", data)
	if err != nil {
		return err
	}
	var record map[string]any
	if err := json.Unmarshal(data[:n], &record); err != nil {
		return err
	}
	change(record)
	forged, err := json.Marshal(record)
	return errors.Join(err, setRecord(string(forged)))
}

func setRecord(text string) error { return unix.Setxattr(".", "trusted.step-csi", []byte(text), 0) }

// replacing replaces all files of the set in use.
func replacing(put func(path string) error) func() error {
	return func() (err error) {
		for _, name := range attackedFiles {
			path := "..data/" + name
			err = errors.Join(err, os.Remove(path), put(path))
		}
		return err
	}
}

// swapping replaces ..data.
func swapping(put func() error) func() error {
	return func() error { return errors.Join(os.Remove("..data"), put()) }
}

// runContainer remounts the volume in the working directory writable, attacks it, and
// stays until its standard input ends.
func runContainer(attack string) {
	err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	if err == nil {
		// This clears nodev, nosuid and noexec, too.
		err = unix.Mount("", ".", "", unix.MS_BIND|unix.MS_REMOUNT, "")
	}
	if err == nil {
		err = containerAttacks[attack]()
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("done")
	_, _ = io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

// attackVolume makes a container that attacks the pod's volume, and stops it when the test
// ends.
func attackVolume(t *testing.T, n *node.Node, p node.Pod, attack string) {
	t.Helper()
	self, err := os.Executable()
	node.Must(t, err)
	container := exec.Command(self)
	container.Dir = n.Target(p)
	container.Env = append(os.Environ(), containerAttack+"="+attack)
	container.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	stdin, err := container.StdinPipe()
	node.Must(t, err)
	stdout, err := container.StdoutPipe()
	node.Must(t, err)
	node.Must(t, container.Start())
	t.Cleanup(func() {
		stdin.Close()
		_ = container.Wait()
	})
	answer := make([]byte, 4096)
	length, _ := stdout.Read(answer)
	if said := string(answer[:length]); said != "done\n" {
		t.Fatalf("%s: the container: %s", attack, said)
	}
}

// honest is a pod beside the attackers.
var honest = node.Pod{Name: "honest-0", Attributes: map[string]string{"duration": "6s"}}

// certificateOf returns the certificate in the pod's volume, which may have expired on a
// slow machine.
func certificateOf(t *testing.T, n *node.Node, p node.Pod) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(n.Target(p), "tls.crt"))
	node.Must(t, err)
	return string(data)
}

// A container with CAP_SYS_ADMIN, which can remount its volume writable, harms only its own
// pod, whatever it puts there: the plugin renews the volumes of other pods, starts, answers
// calls, and removes the attacker's volume with its pod.
func TestAttackByContainer(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	signings := interceptSignings(ca)
	n := newNode(t, ca)
	n.Publish(honest)
	renewsTwice := func(when string) {
		t.Helper()
		for range 2 {
			before := certificateOf(t, n, honest)
			node.Eventually(t, time.Minute, "the honest pod's renewal "+when, func() bool { return certificateOf(t, n, honest) != before })
		}
	}
	hosts, err := os.ReadFile("/etc/hosts")
	node.Must(t, err)
	pods := map[string]node.Pod{}
	for attack := range containerAttacks {
		p := node.Pod{Name: strings.ReplaceAll(strings.ReplaceAll(attack, " ", "-"), "'", ""), Attributes: map[string]string{
			"owner-uid": strconv.Itoa(filesOwner), "privatekey-mode": "0600", "pkcs12-file": "keystore.p12", "duration": "6s", "reuse-private-key": "true"}}
		n.Publish(p)
		pods[attack] = p
	}
	for attack, p := range pods {
		// A renewal in the middle of an attack undoes a part of it, and makes the rest fail.
		signings.without(n, p, func() { attackVolume(t, n, p, attack) })
	}
	callAll := func() {
		t.Helper()
		for attack, p := range pods {
			if err := n.TryPublish(p); err != nil && !isNotFinal(err) {
				t.Errorf("%s: the kubelet takes this error of a republish as final: %v", attack, err)
			} else if status.Code(err) == codes.DeadlineExceeded {
				t.Errorf("%s: the republish hangs: %v", attack, err)
			}
			if _, err := n.Health(p); status.Code(err) == codes.DeadlineExceeded {
				t.Errorf("%s: the health hangs: %v", attack, err)
			}
		}
	}
	renewsTwice("beside the attackers")
	callAll()
	n.Kill()
	n.Start()
	n.Publish(honest)
	callAll()
	renewsTwice("after a restart")
	callAll()
	if now, err := os.ReadFile("/etc/hosts"); err != nil || string(now) != string(hosts) {
		t.Errorf("/etc/hosts changed: %v", err)
	}
	if n.Logs.Has("Panic recovered") {
		t.Error("the plugin panicked")
	}
	for attack, p := range pods {
		if err := n.TryUnpublish(p); err != nil {
			t.Errorf("%s: %v", attack, err)
		}
		n.ExpectGone(p)
	}
	n.Unpublish(honest)
}

// A container with CAP_SYS_ADMIN forges the identity of another pod in its volume's record.
// The restarted plugin issues nothing until the kubelet publishes the volume again, and
// then for the pod that the kubelet names.
func TestForgedIdentity(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	n := newNode(t, ca)
	p := node.Pod{Name: "web-0"}
	n.Publish(p)
	first := read(t, n.Target(p)).leaf()
	n.Kill()
	attackVolume(t, n, p, "another pod's record") // by the record, the certificate is due
	n.Start()
	for range 2 { // a found volume is not renewed, however often the plugin restarts
		time.Sleep(3 * time.Second)
		n.Kill()
		n.Start()
	}
	if leaf := read(t, n.Target(p)).leaf(); !leaf.Equal(first) || ca.Signs() != 1 {
		t.Fatalf("the plugin issued a certificate by the record: %v, URIs %v", leaf.DNSNames, leaf.URIs)
	}
	n.Republish()
	node.Eventually(t, time.Minute, "a renewal", func() bool { return !read(t, n.Target(p)).leaf().Equal(first) })
	leaf := read(t, n.Target(p)).leaf()
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != "spiffe://cluster.local/ns/shop/sa/web" || len(leaf.DNSNames) > 0 {
		t.Errorf("the certificate has the names %v, %v", leaf.DNSNames, leaf.URIs)
	}
	if leaf.NotAfter.Sub(leaf.NotBefore) < time.Hour {
		t.Errorf("the certificate has the lifetime of the record: %s", leaf.NotAfter.Sub(leaf.NotBefore))
	}
	if n.Logs.Count(logs.Contradicts, `pod="shop/web-0"`, "prod/db-0") != 1 {
		t.Error("the log does not report the forged record")
	}
	n.Unpublish(p)
}

// After a restart, the plugin revokes the certificate of a removed volume only with its key,
// so that a container with CAP_SYS_ADMIN cannot have another pod's certificate revoked:
// neither by the serial number in its record, nor by the certificate itself, which is no
// secret.
func TestForgedRevocation(t *testing.T) {
	t.Parallel()
	ca := startRealCA(t)
	n := newNode(t, ca)
	victim := node.Pod{Name: "victim-0", Attributes: map[string]string{"duration": "5m"}}
	n.Publish(victim)
	target := read(t, n.Target(victim)).leaf()
	certificate, err := os.ReadFile(filepath.Join(n.Target(victim), "tls.crt"))
	node.Must(t, err)
	serial := func(root *os.Root, tree *tmpfs.Tree, record []byte, own string) error {
		return tree.SetRecord(bytes.ReplaceAll(record, []byte(own), []byte(target.SerialNumber.String())))
	}
	var expected []string
	for i, test := range []struct {
		forge       func(root *os.Root, tree *tmpfs.Tree, record []byte, own string) error
		republished bool
		revoked     bool // its own certificate
	}{
		{func(*os.Root, *tmpfs.Tree, []byte, string) error { return nil }, false, true},
		{func(*os.Root, *tmpfs.Tree, []byte, string) error { return nil }, true, true},
		{serial, false, true},
		{serial, true, true},
		{func(root *os.Root, tree *tmpfs.Tree, record []byte, own string) error {
			return errors.Join(serial(root, tree, record, own), root.Remove("..data/tls.key"))
		}, false, false},
		{func(root *os.Root, tree *tmpfs.Tree, record []byte, own string) error {
			return errors.Join(serial(root, tree, record, own), root.Remove("..data/tls.crt"), root.WriteFile("..data/tls.crt", certificate, 0o444))
		}, false, false},
	} {
		p := node.Pod{Name: fmt.Sprint("web-", i), Attributes: map[string]string{"duration": "5m", "revoke-on-delete": "true"}}
		n.Publish(p)
		own := read(t, n.Target(p)).leaf().SerialNumber.String()
		n.Kill()
		changeVolume(t, n, p, func(root *os.Root, tree *tmpfs.Tree, record []byte) error { return test.forge(root, tree, record, own) })
		n.Start()
		if test.republished {
			n.Publish(p)
		}
		count := func() int { return n.Logs.Count(logs.Revoked) + n.Logs.Count(logs.RevokeByHand) }
		before := count()
		n.Unpublish(p)
		node.Eventually(t, time.Minute, fmt.Sprintf("the end of revocation %d", i), func() bool { return count() > before })
		if test.revoked {
			expected = append(expected, own)
		}
	}
	list := strings.Fields(revoked(t, ca))
	slices.Sort(list)
	slices.Sort(expected)
	if !slices.Equal(list, expected) {
		t.Errorf("the CRL has %s, want %s; the victim has %s", list, expected, target.SerialNumber)
	}
	n.Unpublish(victim)
}

// changeVolume changes the pod's volume, as a container with CAP_SYS_ADMIN can.
func changeVolume(t *testing.T, n *node.Node, p node.Pod, change func(root *os.Root, tree *tmpfs.Tree, record []byte) error) {
	t.Helper()
	target, err := os.Open(n.Target(p))
	node.Must(t, err)
	defer target.Close()
	record, err := tmpfs.Record(target)
	node.Must(t, err)
	tree, err := tmpfs.Clone(target)
	node.Must(t, err)
	defer tree.Close()
	root, err := tree.Root()
	node.Must(t, err)
	defer root.Close()
	node.Must(t, change(root, tree, record))
}

// isNotFinal tells whether the kubelet leaves the mount alone after this error. See
// https://github.com/kubernetes/kubernetes/issues/121271.
func isNotFinal(err error) bool {
	return slices.Contains([]codes.Code{
		codes.Canceled, codes.DeadlineExceeded, codes.Unavailable, codes.ResourceExhausted, codes.Aborted,
	}, status.Code(err))
}
