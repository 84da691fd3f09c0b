package crash

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flexstack/step-csi/driver/tmpfs"
	"github.com/flexstack/step-csi/test/logs"
	"github.com/flexstack/step-csi/test/node"
)

func (n *victim) serial(p node.Pod) string {
	n.T.Helper()
	leaf, err := read(n.Target(p), usual)
	node.Must(n.T, err)
	return leaf.SerialNumber.String()
}

// expectRenewal waits for another certificate in the pod's volume, and checks it.
func (n *victim) expectRenewal(p node.Pod, before string) {
	n.T.Helper()
	node.Eventually(n.T, time.Minute, "a renewal", func() bool { return n.serial(p) != before })
	node.Eventually(n.T, time.Minute, "nothing is wrong", func() bool {
		trouble, err := n.Health(p)
		return err == nil && len(trouble) == 0
	})
}

func (n *victim) expectTrouble(p node.Pod, message string) {
	n.T.Helper()
	node.Eventually(n.T, time.Minute, "the volume's health says "+message, func() bool {
		trouble, err := n.Health(p)
		return err == nil && len(trouble) == 1 && strings.Contains(trouble[0].GetMessage(), message)
	})
}

// openVolume opens the pod's volume for writing.
func (n *victim) openVolume(p node.Pod) *os.Root {
	n.T.Helper()
	target, err := os.Open(n.Target(p))
	node.Must(n.T, err)
	defer target.Close()
	tree, err := tmpfs.Clone(target)
	node.Must(n.T, err)
	defer tree.Close()
	root, err := tree.Root()
	node.Must(n.T, err)
	n.T.Cleanup(func() { root.Close() })
	return root
}

// A full volume keeps its files, and is renewed once there is space again.
func TestFullVolume(t *testing.T) {
	t.Parallel()
	n := newVictim(t, startCA(t))
	n.start()
	for name, fill := range map[string]func(*os.Root) error{
		"bytes": func(root *os.Root) error { return root.WriteFile("filler", make([]byte, 2<<20), 0o600) },
		"inodes": func(root *os.Root) (err error) {
			for i := 0; err == nil; i++ {
				err = root.WriteFile(fmt.Sprint("filler", i), nil, 0o600)
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPod("web-"+name).With("duration", "6s")
			n.Publish(p)
			root := n.openVolume(p)
			if err := fill(root); !errors.Is(err, unix.ENOSPC) {
				t.Fatalf("filled: %v", err)
			}
			before := n.serial(p)
			n.expectTrouble(p, "no space left on device")
			if leaf, err := readAll(n.Target(p), usual); err != nil || leaf.SerialNumber.String() != before {
				t.Errorf("what was mounted is not there: %v", err)
			}
			fillers, err := filepath.Glob(n.Target(p) + "/filler*")
			node.Must(t, err)
			for _, filler := range fillers {
				node.Must(t, root.Remove(filepath.Base(filler)))
			}
			n.expectRenewal(p, before)
			if names, err := filepath.Glob(n.Target(p) + "/..2*"); err != nil || len(names) > 2 {
				t.Errorf("sets of files: %q, %v", names, err)
			}
			n.Unpublish(p)
			n.ExpectGone(p)
		})
	}
	n.stop()
}

// moreRoots adds a root of at least this size to the CA's answers while wanted
// returns true.
func moreRoots(t *testing.T, size int, wanted func() bool) func(http.Handler) http.Handler {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	node.Must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Another"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Value: make([]byte, size)}},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	node.Must(t, err)
	another := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !strings.HasSuffix(r.URL.Path, "/roots") || !wanted() {
				next.ServeHTTP(w, r)
				return
			}
			recorder := httptest.NewRecorder()
			next.ServeHTTP(recorder, r)
			var answer struct {
				Certificates []string `json:"crts"`
			}
			if err := json.Unmarshal(recorder.Body.Bytes(), &answer); err != nil {
				t.Error(err)
			}
			answer.Certificates = append(answer.Certificates, another)
			w.WriteHeader(recorder.Code)
			_ = json.NewEncoder(w).Encode(answer)
		})
	}
}

// With roots that do not fit, a publish leaves nothing, and a mounted volume stays.
func TestRootsLargerThanAVolume(t *testing.T) {
	t.Parallel()
	const tooLarge = "a file in a volume has at most 1048576"
	ca := startCA(t)
	n := newVictim(t, ca)
	n.start()
	mounted, refused := newPod("web-0").With("duration", "6s"), newPod("web-1")
	n.Publish(mounted)
	before := n.serial(mounted)
	n.kill()
	ca.Intercept(moreRoots(t, 1<<20, func() bool { return true })) // larger than a volume
	n.start()
	n.Republish()
	if err := n.TryPublish(refused); status.Code(err) != codes.Internal || !strings.Contains(err.Error(), tooLarge) {
		t.Errorf("published: %v", err)
	}
	n.ExpectGone(refused)
	n.expectTrouble(mounted, tooLarge)
	if leaf, err := readAll(n.Target(mounted), usual); err != nil || leaf.SerialNumber.String() != before {
		t.Errorf("what was mounted is not there: %v", err)
	}
	ca.Intercept(nil)
	n.kill()
	n.start()
	n.Republish()
	n.Publish(refused)
	n.expectRenewal(mounted, before)
	for _, p := range []node.Pod{mounted, refused} {
		n.Unpublish(p)
		n.ExpectGone(p)
	}
	n.stop()
}

// The disk of the plugin's own directory is full, and later read-only. Only the saving of
// the trusted roots fails, and is logged once. With space again, they are saved.
func TestRootsCannotBeSaved(t *testing.T) {
	t.Parallel()
	n := newVictim(t, startCA(t))
	directory := filepath.Dir(n.Socket())
	node.Must(t, os.MkdirAll(directory, 0o755))
	node.Must(t, syscall.Mount("small", directory, "tmpfs", 0, "size=4k"))
	defer func() { node.Must(t, syscall.Unmount(directory, syscall.MNT_DETACH)) }()
	filler := filepath.Join(directory, "filler")
	node.Must(t, os.WriteFile(filler, make([]byte, 4096), 0o600))
	const saved, failed = "trusted-roots.json", `"Cannot save the trusted roots`
	files := func() string {
		names, err := filepath.Glob(directory + "/*roots*")
		node.Must(t, err)
		for i := range names {
			names[i] = filepath.Base(names[i])
		}
		return strings.Join(names, " ")
	}
	p := newPod("web-0").With("duration", "6s")
	n.start()
	n.Publish(p)
	n.expectRenewal(p, n.serial(p)) // meanwhile, roots are requested every second
	n.expectRenewal(p, n.serial(p))
	// While the plugin tries again, there is a new file for a moment.
	node.Eventually(t, time.Minute, "no file", func() bool { return files() == "" })
	if logged := n.Logs.Count(failed, "no space left on device"); logged != 1 {
		t.Errorf("logged %d times", logged)
	}
	node.Must(t, os.Remove(filler))
	node.Eventually(t, time.Minute, "the roots are saved", func() bool { return files() == saved })

	node.Must(t, syscall.Mount("", directory, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""))
	n.expectRenewal(p, n.serial(p))
	node.Must(t, syscall.Mount("", directory, "", syscall.MS_REMOUNT, ""))
	n.Unpublish(p)
	n.stop()
}

// If somebody removes a mount, its target or the pod's directory, the plugin notices
// at the next renewal, and the kubelet's next call restores the volume.
func TestTakenAwayBehindOurBack(t *testing.T) {
	t.Parallel()
	n := newVictim(t, startCA(t))
	n.start()
	for name, takeAway := range map[string]func(target string) error{
		"the mount": func(target string) error { return syscall.Unmount(target, syscall.MNT_DETACH) },
		"the target": func(target string) error {
			return errors.Join(syscall.Unmount(target, syscall.MNT_DETACH), os.Remove(target))
		},
		"the pod directory": func(target string) error {
			pod := filepath.Dir(filepath.Dir(filepath.Dir(filepath.Dir(target))))
			return errors.Join(syscall.Unmount(target, syscall.MNT_DETACH), os.RemoveAll(pod))
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPod("web-"+strings.ReplaceAll(name, " ", "-")).With("duration", "3s")
			n.Publish(p)
			node.Must(t, takeAway(n.Target(p)))
			if _, err := n.Health(p); status.Code(err) != codes.NotFound {
				t.Errorf("its health: %v", err)
			}
			node.Eventually(t, time.Minute, "the renewals end", func() bool {
				return n.Logs.Has(fmt.Sprintf(logs.RenewalsStopped+` pod="shop/%s"`, p.Name))
			})
			n.Publish(p)
			n.expectRenewal(p, n.serial(p))
			node.Must(t, takeAway(n.Target(p)))
			n.Unpublish(p)
			n.ExpectGone(p)
			n.Publish(p)
			n.Unpublish(p)
			n.ExpectGone(p)
		})
	}
	n.stop()
}

// The same during a publish, a renewal and an unpublish.
func TestTakenAwayMeanwhile(t *testing.T) {
	t.Parallel()
	n := newVictim(t, startCA(t))
	n.startIntercepted(nil)
	p := newPod("web-0")
	before := func(name string, do func() error) {
		n.calls.set(func(c call) verdict {
			if c.name == name && do != nil {
				if err := do(); err != nil {
					t.Error(err)
				}
				do = nil
			}
			return verdict{}
		})
	}
	before("move_mount", func() error { return os.Remove(n.Target(p)) })
	if err := n.TryPublish(p); status.Code(err) != codes.NotFound {
		t.Errorf("published where there is no target: %v", err)
	}
	n.ExpectGone(p)
	n.Publish(p)
	for _, call := range []string{"open_tree", "openat(O_CREAT)", "setxattr"} {
		first := n.serial(p)
		done := make(chan struct{})
		before(call, func() error {
			defer close(done)
			return syscall.Unmount(n.Target(p), syscall.MNT_DETACH)
		})
		n.Publish(p.With("service-names", call[:4]))
		<-done
		n.Publish(p)
		if n.serial(p) == first {
			t.Errorf("unmounted before %s: the old volume is there", call)
		}
		n.expectTracked(p)
	}
	before("umount2", func() error { return syscall.Unmount(n.Target(p), syscall.MNT_DETACH) })
	_ = n.TryUnpublish(p) // there was something a moment ago
	n.Unpublish(p)
	n.ExpectGone(p)
	n.stop()
}

// Renewals go on while the kubelet's directory is read-only, as after an error of the
// file system.
func TestReadOnlyKubeletDirectory(t *testing.T) {
	t.Parallel()
	n := newVictim(t, startCA(t))
	pods := filepath.Join(n.KubeletDir, "pods")
	node.Must(t, os.Mkdir(pods, 0o755))
	node.Must(t, syscall.Mount(pods, pods, "", syscall.MS_BIND, ""))
	defer func() { node.Must(t, syscall.Unmount(pods, 0)) }()
	n.start()
	mounted, refused := newPod("web-0").With("duration", "6s"), newPod("web-1")
	n.Publish(mounted)
	node.Must(t, os.MkdirAll(filepath.Dir(n.Target(refused)), 0o755))
	node.Must(t, syscall.Mount("", pods, "", syscall.MS_BIND|syscall.MS_REMOUNT|syscall.MS_RDONLY, ""))
	if err := n.TryPublish(refused); status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "read-only file system") {
		t.Errorf("published: %v", err)
	}
	n.expectRenewal(mounted, n.serial(mounted))
	for range 2 {
		if err := n.TryUnpublish(mounted); status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "read-only file system") {
			t.Errorf("unpublished: %v", err)
		}
	}
	node.Must(t, syscall.Mount("", pods, "", syscall.MS_BIND|syscall.MS_REMOUNT, ""))
	n.Publish(refused)
	for _, p := range []node.Pod{mounted, refused} {
		n.Unpublish(p)
		n.ExpectGone(p)
	}
	n.stop()
}

// A volume that cannot be unmounted is still renewed.
func TestBusyWhenUnpublished(t *testing.T) {
	t.Parallel()
	n := newVictim(t, startCA(t))
	n.startIntercepted(nil)
	p := newPod("web-0").With("duration", "6s")
	n.Publish(p)
	for _, errno := range []unix.Errno{unix.EBUSY, unix.EINTR} {
		n.calls.set(func(c call) verdict {
			if c.name == "umount2" {
				return verdict{errno: errno}
			}
			return verdict{}
		})
		for range 3 {
			if err := n.TryUnpublish(p); status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "umount2: "+errno.Error()) {
				t.Errorf("unpublished: %v", err)
			}
		}
		n.expectRenewal(p, n.serial(p))
	}
	n.calls.set(nil)
	n.Unpublish(p)
	n.ExpectGone(p)
	n.stop()
}

// Open files do not delay an unpublish, and stay readable.
func TestFilesOpenOverUnpublish(t *testing.T) {
	t.Parallel()
	n := newVictim(t, startCA(t))
	n.start()
	p := newPod("web-0")
	n.Publish(p)
	directory, err := os.Open(n.Target(p))
	node.Must(t, err)
	defer directory.Close()
	file, err := os.Open(filepath.Join(n.Target(p), usual.PrivateKey))
	node.Must(t, err)
	defer file.Close()
	n.Unpublish(p)
	n.ExpectGone(p)
	if read, err := file.Read(make([]byte, 100)); err != nil || read != 100 {
		t.Errorf("the file that is open: %d, %v", read, err)
	}
	n.Publish(p) // a volume of its own
	n.Unpublish(p)
	n.ExpectGone(p)
	n.stop()
}
