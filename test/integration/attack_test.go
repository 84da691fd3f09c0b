package integration

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
	"github.com/flexstack/step-csi/issuer/stepca"
	"github.com/flexstack/step-csi/test/embeddedca"
	"github.com/flexstack/step-csi/test/node"
	"github.com/flexstack/step-csi/test/realca"
)

// TestAttack sends publish requests that try to obtain a name that belongs to
// someone else, or to reach another pod's files. Each request must fail with the
// expected code and leave nothing behind: no mount, no directory, no file and no
// call to the CA.
func TestAttack(t *testing.T) {
	s := newScene(t)
	for kind, attempts := range map[string][]attempt{
		"DNS names of others":      foreignNameAttacks,
		"unusual spellings":        spellingAttacks,
		"malformed DNS names":      malformedNameAttacks,
		"wildcards":                wildcardAttacks,
		"variables":                variableAttacks,
		"ambiguous namespaces":     namespaceAttacks,
		"IP addresses":             addressAttacks,
		"e-mail addresses":         mailboxAttacks,
		"URIs":                     uriAttacks,
		"common names":             commonNameAttacks,
		"keys":                     keyAttacks,
		"the pod's identity":       identityAttacks,
		"file names":               fileAttacks,
		"groups and modes":         modeAttacks,
		"lifetimes, keys, issuers": lifetimeAttacks,
		"target paths":             targetAttacks,
		"targets that are taken":   takenTargetAttacks,
	} {
		t.Run(kind, func(t *testing.T) {
			for _, a := range attempts {
				t.Run(a.name, func(t *testing.T) { s.expect(t, a) })
			}
		})
	}
}

// No other call reaches another pod's volume, or a path that is not a volume.
func TestAttackOtherCalls(t *testing.T) {
	s := newScene(t)
	full := filepath.Join(s.n.KubeletDir, "pods/uid-full/volumes/kubernetes.io~secret/token")
	node.Must(t, os.MkdirAll(full, 0o755))
	node.Must(t, os.WriteFile(filepath.Join(full, "token"), []byte("secret"), 0o600))
	node.Must(t, os.Symlink(s.n.Target(s.other), filepath.Join(s.n.KubeletDir, "link")))
	own, other := attacker.VolumeID(), s.other.VolumeID()
	for _, test := range []struct {
		name     string
		call     func(t *testing.T, id, path string) error
		id, path string
		code     codes.Code
		message  string
	}{
		{"unpublish another's volume", s.unpublish, own, "OTHER", codes.AlreadyExists, "another volume is mounted"},
		{"unpublish a part of another's volume", s.unpublish, own, "OTHER/..data", codes.Internal, "symbolic link"},
		{"unpublish a file of another's volume", s.unpublish, own, "OTHER/tls.key", codes.Internal, "symbolic link"},
		{"unpublish another's volume through a link", s.unpublish, other, "KUBELET/link", codes.Internal, "symbolic link"},
		{"unpublish another's volume by dots", s.unpublish, other, "OWN/../../../../../uid-db-0/volumes/kubernetes.io~csi/tls/mount", codes.InvalidArgument, "not below the kubelet's directory"},
		{"unpublish another's volume without saying which", s.unpublish, "", "OTHER", codes.InvalidArgument, "volume_id is missing"},
		{"stop another's renewal", s.unpublish, other, "OWN", codes.OK, ""},
		{"remove a directory outside", s.unpublish, own, "OUTSIDE", codes.InvalidArgument, "not below the kubelet's directory"},
		{"remove a directory outside by dots", s.unpublish, own, "KUBELET/../outside", codes.InvalidArgument, "not below the kubelet's directory"},
		{"remove the kubelet's directory", s.unpublish, own, "KUBELET", codes.InvalidArgument, "not below the kubelet's directory"},
		{"remove the directory of all pods", s.unpublish, own, "KUBELET/pods", codes.Internal, "not empty"},
		{"remove a volume of another driver", s.unpublish, own, "KUBELET/pods/uid-full/volumes/kubernetes.io~secret/token", codes.Internal, "not empty"},
		{"remove a file", s.unpublish, own, "KUBELET/pods/uid-full/volumes/kubernetes.io~secret/token/token", codes.Internal, "not a directory"},
		{"remove the plugin's socket", s.unpublish, own, "KUBELET/plugins/" + node.Driver + "/csi.sock", codes.Internal, "not a directory"},
		{"stats of another's volume", s.stats, own, "OTHER", codes.NotFound, "no such volume"},
		{"stats of a directory by another's id", s.stats, other, "KUBELET/pods", codes.NotFound, "no such volume"},
		{"stats of a directory outside", s.stats, other, "/etc", codes.NotFound, "no such volume"},
		{"health of another's volume", s.health, own, "OTHER", codes.NotFound, "no such volume"},
		{"health of a directory by another's id", s.health, other, "KUBELET/pods", codes.NotFound, "no such volume"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s.withoutTraces(t, func() { expect(t, test.call(t, test.id, s.path(test.path)), test.code, test.message) })
			node.Must(t, s.health(t, other, s.n.Target(s.other)))
		})
	}
}

func (s *scene) unpublish(t *testing.T, id, path string) error {
	_, err := s.n.NodeUnpublishVolume(t.Context(), &csi.NodeUnpublishVolumeRequest{VolumeId: id, TargetPath: path})
	return err
}

func (s *scene) stats(t *testing.T, id, path string) error {
	_, err := s.n.NodeGetVolumeStats(t.Context(), &csi.NodeGetVolumeStatsRequest{VolumeId: id, VolumePath: path})
	return err
}

func (s *scene) health(t *testing.T, id, path string) error {
	_, err := s.n.NodeGetVolumeHealth(t.Context(), &csi.NodeGetVolumeHealthRequest{VolumeId: id, VolumePublishPath: path})
	return err
}

// The plugin ignores some attempts: the publish succeeds, and the pod gets only its
// own names and a read-only tmpfs.
func TestAttackIsIgnored(t *testing.T) {
	s := newScene(t)
	for name, change := range map[string]func(*forgery){
		"names in a key of the kubelet's": withPod("dns-names", "db.prod"),
		"a twin of the pod's namespace":   withPod("pod.namespace ", "prod"),
		"a token of another pod's":        withPod("serviceAccount.tokens", `{"step-csi": {"token": "e30.e30.e30"}}`),
		"what the driver publishes":       func(f *forgery) { f.PublishContext = map[string]string{"dns-names": "db.prod"} },
		"names in secrets":                func(f *forgery) { f.Secrets = map[string]string{"dns-names": "db.prod"} },
		"options of the mount": func(f *forgery) {
			f.VolumeCapability.GetMount().MountFlags = []string{"exec", "suid", "dev", "rw", "bind"}
		},
		"a writable volume": func(f *forgery) { f.Readonly = false },
		"a context, where SELinux is off": func(f *forgery) {
			f.VolumeCapability.GetMount().MountFlags = []string{`context="system_u:object_r:container_file_t:s0:c1,c2"`}
		},
		"another file system":                func(f *forgery) { f.VolumeCapability.GetMount().FsType = "ext4" },
		"a staging path that is not its own": func(f *forgery) { f.StagingTargetPath = f.s.n.Target(f.s.other) },
	} {
		t.Run(name, func(t *testing.T) {
			f := &forgery{NodePublishVolumeRequest: s.n.MustRequest(attacker), t: t, s: s}
			change(f)
			_, err := s.n.NodePublishVolume(t.Context(), f.NodePublishVolumeRequest)
			node.Must(t, err)
			defer s.n.Unpublish(attacker)
			leaf := read(t, f.TargetPath).leaf()
			if len(leaf.DNSNames) > 0 || leaf.Subject.CommonName != attacker.ID() || len(leaf.URIs) != 1 || leaf.URIs[0].Path != "/ns/shop/sa/web" {
				t.Errorf("common name %q, DNS names %q, URIs %q", leaf.Subject.CommonName, leaf.DNSNames, leaf.URIs)
			}
			var mounted syscall.Statfs_t
			node.Must(t, syscall.Statfs(f.TargetPath, &mounted))
			if want := int64(syscall.MS_RDONLY | syscall.MS_NOSUID | syscall.MS_NODEV | syscall.MS_NOEXEC); mounted.Flags&want != want || mounted.Type != unix.TMPFS_MAGIC {
				t.Errorf("file system type %#x, mount flags %#x", mounted.Type, mounted.Flags)
			}
		})
	}
}

// A republish changes the attributes of a mounted volume to forbidden names: the
// renewal is denied, and the volume stays unchanged.
func TestAttackByRepublish(t *testing.T) {
	s := newScene(t)
	s.n.Publish(attacker)
	defer s.n.Unpublish(attacker)
	s.withoutTraces(t, func() {
		for message, names := range map[string]string{
			"db.prod is not allowed":         "db.prod",
			"not a DNS name":                 "db..prod",
			"*.prod.svc is not allowed":      "*.prod.svc",
			"www.example.com is not allowed": "WWW.example.com",
			"web.xn--shp-ted is not allowed": "web.shоp",
			"a * must be the whole first ":   "web.*",
		} {
			again := attacker
			again.Attributes = map[string]string{"dns-names": names}
			s.n.Publish(again)
			node.Eventually(t, time.Minute, message, func() bool { return s.n.Logs.Has(message) })
		}
	})
}

// attempt is one change to a valid request, that of pod web-0 in namespace shop with
// service account web.
type attempt struct {
	name    string
	change  func(*forgery)
	code    codes.Code
	message string // a part of the expected error
}

// forgery is the request that an attempt changes.
type forgery struct {
	*csi.NodePublishVolumeRequest
	t *testing.T
	s *scene
}

// scene is a node on which another pod's volume is mounted.
type scene struct {
	ca      *embeddedca.CA
	n       *node.Node
	other   node.Pod
	outside string // a directory next to the kubelet's
}

// attacker is the pod that sends all attempts.
var attacker = node.Pod{Name: "web-0"}

func newScene(t *testing.T) *scene {
	ca := startCA(t)
	s := &scene{ca: ca, n: newNode(t, ca), other: node.Pod{Name: "db-0"}}
	s.outside = filepath.Join(filepath.Dir(s.n.KubeletDir), "outside")
	node.Must(t, os.Mkdir(s.outside, 0o755))
	s.n.Publish(s.other)
	t.Cleanup(func() { s.n.Unpublish(s.other) })
	// Check that traces notices an ordinary publish.
	before := s.traces(t)
	s.n.Publish(attacker)
	if traces := minus(s.traces(t), before); len(traces) < 5 {
		t.Fatalf("a publish left too few traces: %q", traces)
	}
	s.n.Unpublish(attacker)
	return s
}

func (s *scene) expect(t *testing.T, a attempt) {
	f := &forgery{NodePublishVolumeRequest: s.n.MustRequest(attacker), t: t, s: s}
	a.change(f)
	s.withoutTraces(t, func() {
		_, err := s.n.NodePublishVolume(t.Context(), f.NodePublishVolumeRequest)
		expect(t, err, a.code, a.message)
	})
}

// withoutTraces runs do and checks that it changed no file and no mount, and did not
// reach the CA.
func (s *scene) withoutTraces(t *testing.T, do func()) {
	t.Helper()
	before, signs := s.traces(t), s.ca.Signs()
	do()
	after := s.traces(t)
	if more := s.ca.Signs() - signs; more != 0 {
		t.Errorf("the CA received %d signing requests", more)
	}
	if !slices.Equal(before, after) {
		t.Errorf("added: %q; removed: %q", minus(after, before), minus(before, after))
		s.n.Unpublish(attacker)
	}
}

// traces lists all mounts, and all files of the node with their contents.
func (s *scene) traces(t *testing.T) []string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	node.Must(t, err)
	all := strings.Split(string(mounts), "\n")
	node.Must(t, filepath.WalkDir(filepath.Dir(s.n.KubeletDir), func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		var content []byte
		if err == nil && info.Mode().IsRegular() {
			content, err = os.ReadFile(path)
		}
		all = append(all, fmt.Sprintf("%s %s %s", path, info.Mode(), content))
		return err
	}))
	return all
}

func minus(all, others []string) []string {
	return slices.DeleteFunc(slices.Clone(all), func(one string) bool { return slices.Contains(others, one) })
}

const kubeletKeys = "csi.storage.k8s.io/"

// with sets a volume attribute, or a key that only the kubelet sets.
func with(key, value string) func(*forgery) {
	return func(f *forgery) { f.VolumeContext[key] = value }
}

func withDNS(names string) func(*forgery)        { return with("dns-names", names) }
func withIP(addresses string) func(*forgery)     { return with("ip-sans", addresses) }
func withMail(addresses string) func(*forgery)   { return with("email-sans", addresses) }
func withURI(uris string) func(*forgery)         { return with("uri-sans", uris) }
func withName(common string) func(*forgery)      { return with("common-name", common) }
func withPod(field, value string) func(*forgery) { return with(kubeletKeys+field, value) }

func both(changes ...func(*forgery)) func(*forgery) {
	return func(f *forgery) {
		for _, change := range changes {
			change(f)
		}
	}
}

// withDNSIn requests DNS names for a pod in another namespace.
func withDNSIn(namespace, names string) func(*forgery) {
	return both(withPod("pod.namespace", namespace), withDNS(names))
}

// path replaces the placeholders KUBELET, OWN, OTHER and OUTSIDE: the kubelet's
// directory, the target paths of the attacker and of the other pod, and the
// directory outside.
func (s *scene) path(template string) string {
	return strings.NewReplacer(
		"KUBELET", s.n.KubeletDir, "OWN", s.n.Target(attacker), "OTHER", s.n.Target(s.other), "OUTSIDE", s.outside,
	).Replace(template)
}

func withTarget(template string) func(*forgery) {
	return func(f *forgery) { f.TargetPath = f.s.path(template) }
}

func withID(id func(*scene) string) func(*forgery) {
	return func(f *forgery) { f.VolumeId = id(f.s) }
}

// put moves away the file or directory at path until the test ends, so that the
// caller can create another one.
func (f *forgery) put(path string) string {
	away := path + ".away"
	if err := os.Rename(path, away); err == nil {
		f.t.Cleanup(func() { node.Must(f.t, os.Rename(away, path)) })
	}
	f.t.Cleanup(func() { node.Must(f.t, os.Remove(path)) })
	return path
}

// linked replaces from with a symbolic link to to.
func linked(from, to string) func(*forgery) {
	return func(f *forgery) { node.Must(f.t, os.Symlink(f.s.path(to), f.put(f.s.path(from)))) }
}

// mounted creates a mount at the target path.
func mounted(source, kind string, flags uintptr) func(*forgery) {
	return func(f *forgery) {
		node.Must(f.t, os.Mkdir(f.put(f.TargetPath), 0o755))
		node.Must(f.t, syscall.Mount(f.s.path(source), f.TargetPath, kind, flags, ""))
		f.t.Cleanup(func() { node.Must(f.t, syscall.Unmount(f.TargetPath, 0)) })
	}
}

var foreignNameAttacks = []attempt{
	{"of another namespace", withDNS("db.prod"), codes.PermissionDenied, "db.prod is not allowed"},
	{"of another namespace, with svc", withDNS("db.prod.svc"), codes.PermissionDenied, "db.prod.svc is not allowed"},
	{"of another namespace, in full", withDNS("db.prod.svc.cluster.local"), codes.PermissionDenied, "is not allowed"},
	{"behind an own one", withDNS("web.shop,db.prod,web.shop.svc"), codes.PermissionDenied, "db.prod is not allowed"},
	{"of the API server", withDNS("kubernetes.default.svc"), codes.PermissionDenied, "reserved"},
	{"of a public host", withDNS("example.com"), codes.PermissionDenied, "is not allowed"},
	{"below a public domain", withDNS("web.shop.svc.cluster.local.evil.com"), codes.PermissionDenied, "is not allowed"},
	{"below another cluster domain", withDNS("web.shop.svc.evil"), codes.PermissionDenied, "is not allowed"},
	{"the own namespace as a service", withDNS("shop.evil"), codes.PermissionDenied, "is not allowed"},
	{"ends as the own namespace does", withDNS("web.notshop.svc"), codes.PermissionDenied, "is not allowed"},
	{"begins as the own namespace does", withDNS("web.shopping.svc"), codes.PermissionDenied, "is not allowed"},
	{"the own namespace without a dot", withDNS("evilshop"), codes.PermissionDenied, "is not allowed"},
	{"the own namespace itself", withDNS("shop.svc"), codes.PermissionDenied, "is not allowed"},
	{"the own namespace without svc", withDNS("web.shop.cluster.local"), codes.PermissionDenied, "is not allowed"},
	{"of a pod by its address", withDNS("10-0-0-1.shop.pod.cluster.local"), codes.PermissionDenied, "is not allowed"},
	{"three labels under the namespace", withDNS("www.example.shop"), codes.PermissionDenied, "is not allowed"},
	{"a short name", withDNS("postgres"), codes.PermissionDenied, "postgres is not allowed"},
	{"localhost", withDNS("localhost"), codes.PermissionDenied, "localhost is reserved"},
	{"a service of another namespace", with("service-names", "db.prod"), codes.InvalidArgument, "not the name of a Service"},
	{"a service behind an own one", with("service-names", "web,db.prod"), codes.InvalidArgument, "not the name of a Service"},
	{"a service with a full-width dot", with("service-names", "db．prod"), codes.InvalidArgument, "not the name of a Service"},
	{"every service", with("service-names", "*"), codes.InvalidArgument, "must be the whole first label"},
	{"every service of another namespace", with("service-names", "*.prod"), codes.InvalidArgument, "*"},
	{"a service and a path", with("service-names", "db/../prod"), codes.InvalidArgument, "not a DNS name"},
}

var spellingAttacks = []attempt{
	{"upper case", withDNS("DB.PROD.SVC"), codes.PermissionDenied, "db.prod.svc is not allowed"},
	{"mixed case", withDNS("Db.pRoD"), codes.PermissionDenied, "db.prod is not allowed"},
	{"a dot at the end", withDNS("db.prod.svc."), codes.InvalidArgument, "leave out the dot"},
	{"an ideographic dot at the end", withDNS("db.prod。"), codes.InvalidArgument, "not a DNS name"},
	{"an ideographic full stop", withDNS("db\u3002prod"), codes.PermissionDenied, "db.prod is not allowed"},
	{"a full-width full stop", withDNS("db\uff0eprod"), codes.PermissionDenied, "db.prod is not allowed"},
	{"a half-width ideographic full stop", withDNS("db\uff61prod"), codes.PermissionDenied, "db.prod is not allowed"},
	{"a host and an ideographic full stop", withDNS("www.example\u3002shop"), codes.PermissionDenied, "www.example.shop is not allowed"},
	{"full-width letters", withDNS("ｄｂ.ｐｒｏｄ.svc"), codes.PermissionDenied, "db.prod.svc is not allowed"},
	{"the sign for kelvin", withDNS("dns.\u212aube-system.svc"), codes.PermissionDenied, "dns.kube-system.svc is not allowed"},
	{"a soft hyphen", withDNS("db.pr\u00adod"), codes.PermissionDenied, "db.prod is not allowed"},
	{"a zero-width joiner", withDNS("db.pr\u200dod"), codes.InvalidArgument, "not a DNS name"},
	{"a zero-width space", withDNS("db.pr\u200bod"), codes.PermissionDenied, "db.prod is not allowed"},
	{"a right-to-left override", withDNS("db.\u202eprod"), codes.InvalidArgument, "not a DNS name"},
	{"a Cyrillic letter in the namespace", withDNS("web.shоp"), codes.PermissionDenied, "web.xn--shp-ted is not allowed"},
	{"Cyrillic letters in svc", withDNS("web.shop.ѕvс"), codes.PermissionDenied, "is not allowed"},
	{"punycode that does not decode", withDNS("xn--a.shop.svc"), codes.InvalidArgument, "not a DNS name"},
	{"punycode of ASCII", withDNS("xn--db-.shop"), codes.InvalidArgument, "not a DNS name"},
	{"punycode of a full-width full stop", withDNS("xn--dbprod-jn68a.shop"), codes.InvalidArgument, "not a DNS name"},
	{"punycode of upper case", withDNS("xn--bcher-2pa.shop"), codes.InvalidArgument, "not a DNS name"},
	{"punycode of nothing", withDNS("xn--.shop"), codes.InvalidArgument, "not a DNS name"},
}

var malformedNameAttacks = []attempt{
	{"a NUL before an own end", withDNS("db.prod\x00.shop.svc"), codes.InvalidArgument, "not a DNS name"},
	{"a newline between two", withDNS("web.shop\ndb.prod"), codes.InvalidArgument, "not a DNS name"},
	{"a tab between two", withDNS("web.shop\tdb.prod"), codes.InvalidArgument, "not a DNS name"},
	{"a blank between two", withDNS("web.shop db.prod"), codes.InvalidArgument, "not a DNS name"},
	{"a percent-encoded dot", withDNS("db.prod%2eshop.svc"), codes.InvalidArgument, "not a DNS name"},
	{"a full-width comma", withDNS("db.prod，web.shop"), codes.InvalidArgument, "not a DNS name"},
	{"a prefix of a type", withDNS("DNS:db.prod"), codes.InvalidArgument, "not a DNS name"},
	{"a port", withDNS("db.prod:443"), codes.InvalidArgument, "not a DNS name"},
	{"a user", withDNS("db.prod@web.shop"), codes.InvalidArgument, "not a DNS name"},
	{"an underscore", withDNS("_ldap._tcp.shop.svc"), codes.InvalidArgument, "not a DNS name"},
	{"an empty label", withDNS("db..shop"), codes.InvalidArgument, "not a DNS name"},
	{"a leading dot", withDNS(".shop.svc"), codes.InvalidArgument, "not a DNS name"},
	{"a leading hyphen", withDNS("-db.shop"), codes.InvalidArgument, "not a DNS name"},
	{"a trailing hyphen", withDNS("db-.shop"), codes.InvalidArgument, "not a DNS name"},
	{"a label of 64 bytes", withDNS(strings.Repeat("a", 64) + ".shop.svc"), codes.InvalidArgument, "not a DNS name"},
	{"a name of 254 bytes", withDNS(strings.Repeat("a.", 122) + "a.shop.svc"), codes.InvalidArgument, "not a DNS name"},
	{"an empty part", withDNS("web.shop,,"), codes.InvalidArgument, "empty part"},
	{"101 names", withDNS(strings.Repeat("x.shop,", 100) + "x.shop"), codes.InvalidArgument, "101 names"},
	{"9 KiB of names", withDNS(strings.Repeat("abcdefghij.abcdefghij.shop.svc,", 300)), codes.InvalidArgument, "bytes as JSON"},
	{"an IPv4 address", withDNS("127.0.0.1"), codes.InvalidArgument, "is an IP address"},
	{"an IPv6 address", withDNS("::1"), codes.InvalidArgument, "is an IP address"},
	{"an IPv4 address in hex", withDNS("0x7f.1"), codes.InvalidArgument, "ends in a number"},
	{"an IPv4 address of two parts", withDNS("10.1"), codes.InvalidArgument, "ends in a number"},
	{"an IPv4 address of one part", withDNS("2130706433"), codes.InvalidArgument, "ends in a number"},
	{"an IPv4 address of full-width digits", withDNS("１２７.0.0.1"), codes.InvalidArgument, "ends in a number"},
}

var wildcardAttacks = []attempt{
	{"bare", withDNS("*"), codes.InvalidArgument, "must be the whole first label"},
	{"bare with a dot", withDNS("*."), codes.InvalidArgument, "leave out the dot"},
	{"for another namespace", withDNS("*.prod.svc"), codes.PermissionDenied, "*.prod.svc is not allowed"},
	{"for all namespaces", withDNS("*.svc"), codes.InvalidArgument, "must be the whole first label"},
	{"for all namespaces in full", withDNS("*.svc.cluster.local"), codes.PermissionDenied, "is not allowed"},
	{"for the cluster", withDNS("*.cluster.local"), codes.PermissionDenied, "is not allowed"},
	{"for the namespaces of a service", withDNS("web.*.svc"), codes.InvalidArgument, "must be the whole first label"},
	{"as the namespace", withDNS("web.*"), codes.InvalidArgument, "must be the whole first label"},
	{"in part of a label", withDNS("w*.shop.svc"), codes.InvalidArgument, "must be the whole first label"},
	{"at the end of a label", withDNS("a*.prod"), codes.InvalidArgument, "must be the whole first label"},
	{"two", withDNS("*.*.svc.cluster.local"), codes.InvalidArgument, "must be the whole first label"},
	{"two stars", withDNS("**.shop.svc"), codes.InvalidArgument, "must be the whole first label"},
	{"full-width", withDNS("＊.prod.svc"), codes.InvalidArgument, "not a DNS name"},
}

var variableAttacks = []attempt{
	{"one that does not end", withDNS("${POD_NAME"), codes.InvalidArgument, "a $ must begin"},
	{"one that is unknown", withDNS("${SECRET}.shop"), codes.InvalidArgument, "a $ must begin"},
	{"one of the environment", withDNS("${PATH}.shop"), codes.InvalidArgument, "a $ must begin"},
	{"one without braces", withDNS("$POD_NAME.shop"), codes.InvalidArgument, "a $ must begin"},
	{"one in another", withDNS("${${POD_NAME}}.shop"), codes.InvalidArgument, "a $ must begin"},
	{"one of a shell", withDNS("$(POD_NAMESPACE).shop"), codes.InvalidArgument, "a $ must begin"},
	{"the namespace under a domain", withDNS("${POD_NAMESPACE}.evil"), codes.PermissionDenied, "shop.evil is not allowed"},
	{"the node as a namespace", withDNS("web.${NODE_NAME}"), codes.PermissionDenied, "web.node-1 is not allowed"},
	{"the cluster domain", withDNS("db.prod.svc.${CLUSTER_DOMAIN}"), codes.PermissionDenied, "is not allowed"},
	{"a pod named like a host", both(withPod("pod.name", "db.prod.svc"), withDNS("${POD_NAME}")), codes.PermissionDenied, "db.prod.svc is not allowed"},
	{"a pod named like a list", both(withPod("pod.name", "web-0.shop,db.prod"), withDNS("${POD_NAME}")), codes.InvalidArgument, "not a Kubernetes name"},
	{"a pod named like a variable", both(withPod("pod.name", "${POD_NAMESPACE}"), withDNS("db.${POD_NAME}")), codes.InvalidArgument, "not a Kubernetes name"},
	{"one in the name of a file", with("certificate-file", "${POD_NAME}/tls.crt"), codes.InvalidArgument, "plain file name"},
}

var namespaceAttacks = []attempt{
	{"svc: of another namespace", withDNSIn("svc", "db.prod.svc"), codes.PermissionDenied, "is not allowed"},
	{"svc: a namespace", withDNSIn("svc", "prod.svc"), codes.PermissionDenied, "may be that of a host outside"},
	{"svc: all", withDNSIn("svc", "*.svc"), codes.InvalidArgument, "must be the whole first label"},
	{"com: a public domain", withDNSIn("com", "example.com"), codes.PermissionDenied, "may be that of a host outside"},
	{"com: a public host", withDNSIn("com", "www.example.com"), codes.PermissionDenied, "is not allowed"},
	{"internal: a host of a private network", withDNSIn("internal", "vault.internal"), codes.PermissionDenied, "may be that of a host outside"},
	{"default: the API server", both(withPod("pod.namespace", "default"), with("service-names", "kubernetes")), codes.PermissionDenied, "kubernetes.default is reserved"},
	{"default: a wildcard over the API server", withDNSIn("default", "*.default.svc"), codes.PermissionDenied, "*.default.svc is reserved"},
	{"default: the API server's full name", withDNSIn("default", "kubernetes.default.svc.cluster.local"), codes.PermissionDenied, "kubernetes.default.svc.cluster.local is reserved"},
	{"default: the API server in upper case", withDNSIn("default", "KUBERNETES.Default.svc"), codes.PermissionDenied, "kubernetes.default.svc is reserved"},
	{"default: the API server with a final dot", withDNSIn("default", "kubernetes.default.svc."), codes.InvalidArgument, "leave out the dot"},
	{"local: the cluster domain", withDNSIn("local", "cluster.local"), codes.PermissionDenied, "may be that of a host outside"},
	{"local: of another namespace", withDNSIn("local", "db.prod.svc.cluster.local"), codes.PermissionDenied, "is not allowed"},
	{"cluster: of another namespace", withDNSIn("cluster", "db.prod.svc.cluster"), codes.PermissionDenied, "is not allowed"},
	{"localhost: a host", withDNSIn("localhost", "web.localhost"), codes.PermissionDenied, "web.localhost is reserved"},
	{"of a digit: an address", withDNSIn("1", "10.1"), codes.InvalidArgument, "ends in a number"},
	{"of a hex digit: an address", withDNSIn("0x1", "127.0x1"), codes.InvalidArgument, "ends in a number"},
}

var addressAttacks = []attempt{
	{"private", withIP("10.0.0.1"), codes.PermissionDenied, "10.0.0.1 is not allowed"},
	{"of the CA", withIP("127.0.0.1"), codes.PermissionDenied, "reserved"},
	{"loopback", withIP("::1"), codes.PermissionDenied, "::1 is reserved"},
	{"link-local, of a metadata service", withIP("169.254.169.254"), codes.PermissionDenied, "169.254.169.254 is reserved"},
	{"link-local", withIP("fe80::1"), codes.PermissionDenied, "fe80::1 is reserved"},
	{"loopback, IPv4 in IPv6", withIP("::ffff:127.0.0.1"), codes.InvalidArgument, "write it as 127.0.0.1"},
	{"multicast", withIP("ff02::1"), codes.InvalidArgument, "not the address of one host"},
	{"broadcast", withIP("255.255.255.255"), codes.InvalidArgument, "not the address of one host"},
	{"localhost as a name", withDNS("localhost"), codes.PermissionDenied, "localhost is reserved"},
	{"a name below localhost", withDNS("web.localhost"), codes.PermissionDenied, "web.localhost is reserved"},
	{"upper case", withIP("FD00::1"), codes.PermissionDenied, "fd00::1 is not allowed"},
	{"written out", withIP("0:0:0:0:0:0:0:1"), codes.PermissionDenied, "::1 is reserved"},
	{"IPv4 in IPv6", withIP("::ffff:10.0.0.1"), codes.InvalidArgument, "write it as 10.0.0.1"},
	{"IPv4 in IPv6 in hex", withIP("::ffff:a00:1"), codes.InvalidArgument, "write it as 10.0.0.1"},
	{"with a zone", withIP("fe80::1%eth0"), codes.InvalidArgument, "not an IP address"},
	{"in brackets", withIP("[::1]"), codes.InvalidArgument, "not an IP address"},
	{"with zeros", withIP("010.0.0.1"), codes.InvalidArgument, "not an IP address"},
	{"of two parts", withIP("10.1"), codes.InvalidArgument, "not an IP address"},
	{"of full-width digits", withIP("１０.0.0.1"), codes.InvalidArgument, "not an IP address"},
	{"unspecified", withIP("0.0.0.0"), codes.InvalidArgument, "not the address of one host"},
	{"a network", withIP("10.0.0.0/8"), codes.InvalidArgument, "not an IP address"},
	{"a port", withIP("10.0.0.1:443"), codes.InvalidArgument, "not an IP address"},
	{"a DNS name", withIP("db.prod"), codes.InvalidArgument, "not an IP address"},
}

var mailboxAttacks = []attempt{
	{"of the namespace", withMail("root@shop.svc"), codes.PermissionDenied, "root@shop.svc is not allowed"},
	{"upper case", withMail("Root@example.com"), codes.InvalidArgument, "in lower-case ASCII"},
	{"a Cyrillic letter in the domain", withMail("root@exаmple.com"), codes.InvalidArgument, "in lower-case ASCII"},
	{"a Cyrillic letter in the user", withMail("rооt@example.com"), codes.InvalidArgument, "in lower-case ASCII"},
	{"with a name", withMail("web <root@example.com>"), codes.InvalidArgument, "in lower-case ASCII"},
	{"in quotes", withMail(`"root"@example.com`), codes.InvalidArgument, "in lower-case ASCII"},
	{"a NUL", withMail("root@example.com\x00.shop.svc"), codes.InvalidArgument, "in lower-case ASCII"},
	{"a newline", withMail("root@example.com\n.shop.svc"), codes.InvalidArgument, "in lower-case ASCII"},
	{"at an address", withMail("root@[10.0.0.1]"), codes.InvalidArgument, "must be a DNS name"},
}

var uriAttacks = []attempt{
	{"of another namespace", withURI("spiffe://cluster.local/ns/prod/sa/web"), codes.PermissionDenied, "/ns/prod/sa/web is not allowed"},
	{"of another service account", withURI("spiffe://cluster.local/ns/shop/sa/admin"), codes.PermissionDenied, "/sa/admin is not allowed"},
	{"of another trust domain", withURI("spiffe://example.org/ns/shop/sa/web"), codes.PermissionDenied, "is not allowed"},
	{"of the trust domain", withURI("spiffe://cluster.local"), codes.PermissionDenied, "is not allowed"},
	{"of a web site", withURI("https://kubernetes.default.svc"), codes.PermissionDenied, "reserved"},
	{"two", withURI("spiffe://cluster.local/ns/shop/sa/web,spiffe://cluster.local/ns/shop/sa/db"), codes.PermissionDenied, "/sa/db is not allowed"},
	{"another instead of the own", both(with("spiffe", "false"), withURI("spiffe://cluster.local/ns/shop/sa/db")), codes.PermissionDenied, "/sa/db is not allowed"},
	{"below the own", withURI("spiffe://cluster.local/ns/shop/sa/web/admin"), codes.PermissionDenied, "is not allowed"},
	{"the scheme in upper case", withURI("SPIFFE://cluster.local/ns/shop/sa/db"), codes.InvalidArgument, "write it as"},
	{"the host in upper case", withURI("spiffe://CLUSTER.local/ns/shop/sa/db"), codes.InvalidArgument, "write it as"},
	{"the path in upper case", withURI("spiffe://cluster.local/ns/SHOP/sa/web"), codes.PermissionDenied, "is not allowed"},
	{"a slash at the end", withURI("spiffe://cluster.local/ns/shop/sa/db/"), codes.InvalidArgument, "empty segment"},
	{"two slashes", withURI("spiffe://cluster.local/ns//shop/sa/web"), codes.InvalidArgument, "empty segment"},
	{"a dot-dot segment", withURI("spiffe://cluster.local/ns/shop/sa/web/../admin"), codes.InvalidArgument, "dot segment"},
	{"a dot segment", withURI("spiffe://cluster.local/ns/./shop/sa/web"), codes.InvalidArgument, "dot segment"},
	{"a percent-encoded letter", withURI("spiffe://cluster.local/ns/shop/sa/%77eb"), codes.InvalidArgument, "percent-encoding"},
	{"a percent-encoded slash", withURI("spiffe://cluster.local/ns/shop/sa/web%2f..%2fadmin"), codes.InvalidArgument, "percent-encoding"},
	{"a percent-encoded NUL", withURI("spiffe://cluster.local/ns/shop/sa/admin%00"), codes.InvalidArgument, "percent-encoding"},
	{"a NUL", withURI("spiffe://cluster.local/ns/shop/sa/admin\x00web"), codes.InvalidArgument, "uri-sans"},
	{"a user", withURI("spiffe://cluster.local@example.org/ns/shop/sa/web"), codes.InvalidArgument, "leave out the user"},
	{"a query", withURI("spiffe://cluster.local/ns/shop/sa/web?sa=admin"), codes.InvalidArgument, "is not a SPIFFE ID"},
	{"an empty query", withURI("spiffe://cluster.local/ns/shop/sa/web?"), codes.InvalidArgument, "is not a SPIFFE ID"},
	{"a fragment", withURI("spiffe://cluster.local/ns/shop/sa/web#admin"), codes.InvalidArgument, "is not a SPIFFE ID"},
	{"a port", withURI("spiffe://cluster.local:443/ns/shop/sa/web"), codes.InvalidArgument, "is not a SPIFFE ID"},
	{"an empty port", withURI("spiffe://cluster.local:/ns/shop/sa/web"), codes.InvalidArgument, "write it as"},
	{"a dot after the host", withURI("spiffe://cluster.local./ns/shop/sa/web"), codes.InvalidArgument, "without a dot at the end"},
	{"a Cyrillic letter in the host", withURI("spiffe://clustеr.local/ns/shop/sa/web"), codes.InvalidArgument, "uri-sans"},
	{"a backslash", withURI(`spiffe://cluster.local\@example.org/ns/shop/sa/web`), codes.InvalidArgument, "uri-sans"},
	{"opaque", withURI("spiffe:cluster.local/ns/shop/sa/db"), codes.InvalidArgument, "scheme and host"},
	{"without a scheme", withURI("//cluster.local/ns/shop/sa/db"), codes.InvalidArgument, "scheme and host"},
	{"a variable for another", withURI("spiffe://${TRUST_DOMAIN}/ns/shop/sa/${POD_NAME}"), codes.PermissionDenied, "/sa/web-0 is not allowed"},
}

var commonNameAttacks = []attempt{
	{"a host of another namespace", withName("db.prod"), codes.PermissionDenied, "common name db.prod is not allowed"},
	{"a host that was not asked for", withName("db.shop"), codes.PermissionDenied, "common name db.shop is not allowed"},
	{"upper case", withName("DB.PROD"), codes.PermissionDenied, "is not allowed"},
	{"a NUL", withName("db.prod\x00.shop"), codes.InvalidArgument, "not printable"},
	{"a newline", withName("web\nO=system:masters"), codes.InvalidArgument, "not printable"},
	{"more of a subject", withName("web,o=system:masters"), codes.PermissionDenied, "is not allowed"},
	{"a whole subject", withName("CN=x,O=system:masters"), codes.PermissionDenied, "is not allowed"},
	{"a user of a node", withName("system:node:node-1"), codes.PermissionDenied, "is not allowed"},
	{"a group", withName("system:masters"), codes.PermissionDenied, "is not allowed"},
	{"a user of the system", withName("root"), codes.PermissionDenied, "is not allowed"},
	{"a user of a database", withName("postgres"), codes.PermissionDenied, "is not allowed"},
	{"the service account", withName("${SERVICE_ACCOUNT_NAME}"), codes.PermissionDenied, "is not allowed"},
	{"the service account as a user", withName("system:serviceaccount:shop:web"), codes.PermissionDenied, "is not allowed"},
	{"a SPIFFE ID", withName("spiffe://cluster.local/ns/shop/sa/db"), codes.PermissionDenied, "is not allowed"},
	{"a wildcard", withName("*"), codes.PermissionDenied, "is not allowed"},
	{"an address", withName("10.0.0.1"), codes.PermissionDenied, "is not allowed"},
	{"the address of the CA", withName("127.0.0.1"), codes.PermissionDenied, "reserved"},
	{"another pod", withName("db-0"), codes.PermissionDenied, "is not allowed"},
	{"another pod's UID", withName("uid-db-0"), codes.PermissionDenied, "is not allowed"},
	{"a Cyrillic letter", withName("postgrеs"), codes.PermissionDenied, "is not allowed"},
	{"a zero-width space", withName("postgres\u200b"), codes.InvalidArgument, "not printable"},
	{"blanks around it", withName(" postgres "), codes.InvalidArgument, "blanks"},
	{"65 bytes", withName(strings.Repeat("a", 65)), codes.InvalidArgument, "1 to 64 bytes"},
	{"a pod named like a user", both(withPod("pod.name", "postgres"), withName("${POD_NAME}")), codes.PermissionDenied, "common name postgres is not allowed"},
	{"a pod named like a host", both(withPod("pod.name", "admin-0.example.com"), withName("${POD_NAME}")), codes.PermissionDenied, "is not allowed"},
}

var keyAttacks = []attempt{
	{"upper case", with("DNS-Names", "db.prod"), codes.InvalidArgument, "dns-names is"},
	{"an underscore", with("dns_names", "db.prod"), codes.InvalidArgument, "dns-names is"},
	{"a blank before it", with(" dns-names", "db.prod"), codes.InvalidArgument, "dns-names is"},
	{"a NUL after it", with("dns-names\x00", "db.prod"), codes.InvalidArgument, "dns-names is"},
	{"a Cyrillic letter", with("dns-nаmes", "db.prod"), codes.InvalidArgument, "dns-names is"},
	{"of cert-manager", with("csi.cert-manager.io/dns-names", "db.prod"), codes.InvalidArgument, "write dns-names"},
	{"a twin of the kubelet's", with("CSI.storage.k8s.io/pod.namespace", "prod"), codes.InvalidArgument, "not a volume attribute"},
	{"the identity as an attribute", with("pod.namespace", "prod"), codes.InvalidArgument, "not a volume attribute"},
	{"a switch of the plugin", with("allow-short-names", "true"), codes.InvalidArgument, "not a volume attribute"},
	{"an address as a DNS name's", with("dns-names", "10.0.0.1"), codes.InvalidArgument, "ip-sans"},
	{"an empty value", with("dns-names", ""), codes.InvalidArgument, "the value is empty"},
}

var identityAttacks = []attempt{
	{"no namespace", func(f *forgery) { delete(f.VolumeContext, kubeletKeys+"pod.namespace") }, codes.InvalidArgument, "pod.namespace is missing"},
	{"an empty namespace", withPod("pod.namespace", ""), codes.InvalidArgument, "pod.namespace is missing"},
	{"a path out of the namespace", withPod("pod.namespace", "kube-system/../shop"), codes.InvalidArgument, "not a Kubernetes name"},
	{"a NUL in the namespace", withPod("pod.namespace", "prod\x00shop"), codes.InvalidArgument, "not a Kubernetes name"},
	{"a newline after the namespace", withPod("pod.namespace", "prod\n"), codes.InvalidArgument, "not a Kubernetes name"},
	{"a namespace in upper case", withPod("pod.namespace", "PROD"), codes.InvalidArgument, "not a Kubernetes name"},
	{"a namespace of two labels", withDNSIn("prod.svc", "db.prod.svc"), codes.InvalidArgument, "not a Kubernetes name"},
	{"a namespace of all", withDNSIn("*", "db.*"), codes.InvalidArgument, "not a Kubernetes name"},
	{"no pod", func(f *forgery) { delete(f.VolumeContext, kubeletKeys+"pod.name") }, codes.InvalidArgument, "pod.name is missing"},
	{"a path out of the pod", withPod("pod.name", "../db-0"), codes.InvalidArgument, "not a Kubernetes name"},
	{"a UID that is a path", withPod("pod.uid", "../uid-db-0"), codes.InvalidArgument, "not a Kubernetes name"},
	{"a UID that is a host", withPod("pod.uid", "example.com"), codes.InvalidArgument, "not a Kubernetes name"},
	{"a service account that is a path", withPod("serviceAccount.name", "web/../admin"), codes.InvalidArgument, "not a Kubernetes name"},
	{"a service account with a query", withPod("serviceAccount.name", "admin?"), codes.InvalidArgument, "not a Kubernetes name"},
	{"a volume that is not the pod's own", withPod("ephemeral", "false"), codes.InvalidArgument, "supports only inline volumes"},
	{"a volume of nearly true", withPod("ephemeral", "TRUE"), codes.InvalidArgument, "supports only inline volumes"},
	{"rubbish as a token", withPod("serviceAccount.tokens", "{"), codes.InvalidArgument, "not the JSON that the kubelet writes"},
}

var fileAttacks = []attempt{
	{"a dot-dot segment", with("certificate-file", "../tls.crt"), codes.InvalidArgument, "plain file name"},
	{"an absolute path", with("privatekey-file", "/etc/ssl/private/tls.key"), codes.InvalidArgument, "plain file name"},
	{"a directory", with("ca-file", "a/b"), codes.InvalidArgument, "plain file name"},
	{"the link to the files", with("privatekey-file", "..data"), codes.InvalidArgument, "the driver uses such names"},
	{"the volume", with("privatekey-file", "."), codes.InvalidArgument, "plain file name"},
	{"the volume's parent", with("privatekey-file", ".."), codes.InvalidArgument, "the driver uses such names"},
	{"a NUL", with("privatekey-file", "tls.key\x00"), codes.InvalidArgument, "not printable"},
	{"a newline", with("certificate-file", "tls\n.crt"), codes.InvalidArgument, "not printable"},
	{"a right-to-left override", with("certificate-file", "tls\u202etrc.key"), codes.InvalidArgument, "not printable"},
	{"256 bytes", with("ca-file", strings.Repeat("a", 256)), codes.InvalidArgument, "at most 255"},
	{"the key for the certificate", with("certificate-file", "tls.key"), codes.InvalidArgument, "both"},
	{"the same for both", both(with("certificate-file", "x"), with("privatekey-file", "x")), codes.InvalidArgument, "both"},
}

var modeAttacks = []attempt{
	{"a negative group", with("fs-group", "-1"), codes.InvalidArgument, "not a group ID"},
	{"a group of 32 bits", with("fs-group", "4294967295"), codes.InvalidArgument, "not a group ID"},
	{"a group that overflows", with("fs-group", "18446744073709551616"), codes.InvalidArgument, "not a group ID"},
	{"a group in octal", with("fs-group", "00"), codes.InvalidArgument, "not a group ID"},
	{"a group by its name", with("fs-group", "root"), codes.InvalidArgument, "not a group ID"},
	{"a negative group of the pod", func(f *forgery) {
		f.VolumeCapability.GetMount().VolumeMountGroup = "-1"
	}, codes.InvalidArgument, "volume_mount_group"},
	{"all permissions for everybody", with("file-mode", "0777"), codes.InvalidArgument, "is not a mode of files in this volume"},
	{"writable for everybody", with("file-mode", "0446"), codes.InvalidArgument, "is not a mode of files in this volume"},
	{"executable", with("file-mode", "0555"), codes.InvalidArgument, "is not a mode of files in this volume"},
	{"setuid", with("file-mode", "4444"), codes.InvalidArgument, "is not a mode of files in this volume"},
	{"setgid", with("file-mode", "02440"), codes.InvalidArgument, "is not a mode of files in this volume"},
	{"that overflows", with("file-mode", "40000000444"), codes.InvalidArgument, "is not a mode of files in this volume"},
	{"not for the owner", with("file-mode", "0044"), codes.InvalidArgument, "is not a mode of files in this volume"},
	{"a device", func(f *forgery) { f.VolumeCapability.AccessType = &csi.VolumeCapability_Block{} }, codes.InvalidArgument, "block device"},
}

var lifetimeAttacks = []attempt{
	{"of a century", with("duration", "1000000h"), codes.InvalidArgument, "not between"},
	{"that overflows", with("duration", "10000000h"), codes.InvalidArgument, "not a duration"},
	{"a nanosecond more than allowed", with("duration", "24h1ns"), codes.InvalidArgument, "not between"},
	{"negative", with("duration", "-1h"), codes.InvalidArgument, "not a duration above zero"},
	{"none", with("duration", "0s"), codes.InvalidArgument, "not a duration above zero"},
	{"that never stops renewing", with("duration", "1ns"), codes.InvalidArgument, "not between"},
	{"renewed immediately", with("renew-before", "1h"), codes.InvalidArgument, "not shorter than the duration"},
	{"renewed too often", with("renew-before", "59m"), codes.InvalidArgument, "more than nine tenths of the duration of 1h0m0s; use at most 54m0s"},
	{"never renewed", with("renew-before", "-1h"), codes.InvalidArgument, "not a duration above zero"},
	{"of a weak key", with("key-type", "rsa-1024"), codes.InvalidArgument, "not one of"},
	{"of a key that takes long to make", with("key-type", "rsa-16384"), codes.InvalidArgument, "not one of"},
	{"an encoding of another key", with("key-encoding", "pkcs1"), codes.InvalidArgument, "pkcs1 is for RSA keys"},
	{"an issuer that is a path", with("issuer", "../default"), codes.InvalidArgument, "is not an issuer"},
	{"an issuer in upper case", with("issuer", "Default"), codes.InvalidArgument, "is not an issuer"},
	{"an issuer with a NUL", with("issuer", "default\x00"), codes.InvalidArgument, "is not an issuer"},
	{"an unknown issuer", with("issuer", "prod"), codes.InvalidArgument, "is not an issuer"},
	{"no names", with("spiffe", "false"), codes.InvalidArgument, "without a subject alternative name"},
	{"a switch that is no boolean", with("spiffe", "0"), codes.InvalidArgument, "not one of true, false"},
}

var targetAttacks = []attempt{
	{"outside", withTarget("OUTSIDE/mount"), codes.InvalidArgument, "not below the kubelet's directory"},
	{"a system directory", withTarget("/etc"), codes.InvalidArgument, "not below the kubelet's directory"},
	{"outside by dots", withTarget("KUBELET/../outside"), codes.InvalidArgument, "not below the kubelet's directory"},
	{"outside by a process's root", withTarget("/proc/self/rootOUTSIDE"), codes.InvalidArgument, "not below the kubelet's directory"},
	{"a sibling with the same prefix", withTarget("KUBELET-2/mount"), codes.InvalidArgument, "not below the kubelet's directory"},
	{"another pod's by dots", withTarget("KUBELET/pods/uid-web-0/../uid-db-0/volumes/kubernetes.io~csi/tls/mount"), codes.InvalidArgument, "not below the kubelet's directory"},
	{"the own with a dot", withTarget("OWN/."), codes.InvalidArgument, "not below the kubelet's directory"},
	{"the own with two slashes", withTarget("KUBELET//pods/uid-web-0/volumes/kubernetes.io~csi/tls/mount"), codes.InvalidArgument, "not below the kubelet's directory"},
	{"the own with a slash at the end", withTarget("OWN/"), codes.InvalidArgument, "not below the kubelet's directory"},
	{"relative", withTarget("pods/uid-web-0/volumes/kubernetes.io~csi/tls/mount"), codes.InvalidArgument, "not below the kubelet's directory"},
	{"the kubelet's directory", withTarget("KUBELET"), codes.InvalidArgument, "not below the kubelet's directory"},
	{"none", withTarget(""), codes.InvalidArgument, "target_path is missing"},
	{"a NUL", withTarget("OWN\x00"), codes.Unavailable, "invalid argument"},
	{"a name that is too long", withTarget("OWN" + strings.Repeat("x", 256)), codes.Unavailable, "too long"},
	{"whose parent is missing", withTarget("KUBELET/pods/uid-none/mount"), codes.NotFound, "no such file"},
	{"the plugin's socket", withTarget("KUBELET/plugins/" + node.Driver + "/csi.sock"), codes.Unavailable, "not a directory"},
	{"below the plugin's socket", withTarget("KUBELET/plugins/" + node.Driver + "/csi.sock/mount"), codes.Unavailable, "not a directory"},
	{"another volume's", withTarget("OTHER"), codes.AlreadyExists, "another volume is mounted"},
	{"a file in another volume", withTarget("OTHER/..data/tls.key"), codes.Unavailable, "symbolic link"},
	{"another volume's id", withID(func(s *scene) string { return s.other.VolumeID() }), codes.AlreadyExists, "is published at"},
	{"no volume id", withID(func(*scene) string { return "" }), codes.InvalidArgument, "volume_id is missing"},
}

var takenTargetAttacks = []attempt{
	{"a link to outside", linked("OWN", "OUTSIDE"), codes.Unavailable, "symbolic link"},
	{"a link to nowhere", linked("OWN", "OUTSIDE/none"), codes.Unavailable, "symbolic link"},
	{"a link to another volume", linked("OWN", "OTHER"), codes.Unavailable, "symbolic link"},
	{"its parent is a link to outside", linked("KUBELET/pods/uid-web-0/volumes/kubernetes.io~csi/tls", "OUTSIDE"), codes.Unavailable, "symbolic link"},
	{"its pod is a link to another pod", linked("KUBELET/pods/uid-web-0", "uid-db-0"), codes.Unavailable, "symbolic link"},
	{"a file", func(f *forgery) { node.Must(f.t, os.WriteFile(f.put(f.TargetPath), nil, 0o600)) }, codes.Unavailable, "not a directory"},
	{"a pipe", func(f *forgery) { node.Must(f.t, syscall.Mkfifo(f.put(f.TargetPath), 0o600)) }, codes.Unavailable, "not a directory"},
	{"a foreign tmpfs", mounted("foreign", "tmpfs", 0), codes.Unavailable, "something else is mounted there"},
	{"a tmpfs with the driver's name", mounted(node.Driver, "tmpfs", 0), codes.Unavailable, "something else is mounted there"},
	{"a bind mount of another volume", mounted("OTHER", "", syscall.MS_BIND), codes.AlreadyExists, "another volume is mounted"},
	{"a directory of the host", mounted("/etc", "", syscall.MS_BIND), codes.Unavailable, "something else is mounted there"},
}

// middleman is a proxy between the plugin and the real step-ca. It serves with a
// certificate for the CA's address that the CA itself issued, records every signing
// request, and can withhold requests from the CA.
type middleman struct {
	*realca.CA
	server *httptest.Server
	asks   chan []byte // signing requests
	keeps  atomic.Bool
}

func (m *middleman) URL() string { return m.server.URL }

func interpose(t *testing.T, ca *realca.CA) *middleman {
	t.Helper()
	behind, err := url.Parse(ca.URL())
	node.Must(t, err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.RootPEM())
	forward := httputil.NewSingleHostReverseProxy(behind)
	forward.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
	m := &middleman{CA: ca, asks: make(chan []byte, 10)}
	m.server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			ask, _ := io.ReadAll(r.Body)
			r.Body = io.NopCloser(bytes.NewReader(ask))
			m.asks <- ask
			if m.keeps.Load() {
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
		}
		forward.ServeHTTP(w, r)
	}))
	m.server.TLS = &tls.Config{Certificates: []tls.Certificate{servingCertificate(t, ca)}}
	m.server.StartTLS()
	t.Cleanup(m.server.Close)
	return m
}

// servingCertificate issues a certificate for the CA's own address, which only a
// policy without reserved names allows.
func servingCertificate(t *testing.T, ca *realca.CA) tls.Certificate {
	t.Helper()
	signer, err := stepca.New(stepca.Config{
		URL: ca.URL(), Fingerprint: ca.Fingerprint(), Provisioner: "admin",
		Password: func() ([]byte, error) { return []byte("password"), nil },
	})
	node.Must(t, err)
	defer signer.Close()
	i, err := issuer.New(issuer.Config{Signer: signer, Policy: func(context.Context, issuer.Pod, issuer.Request) error { return nil }})
	node.Must(t, err)
	c, err := i.Issue(t.Context(), issuer.Applicant{}, issuer.Request{
		CommonName: names.Must(names.ParseCommonName("127.0.0.1")), IPAddresses: names.Must(names.ParseAll(names.ParseIP, "127.0.0.1")),
		Duration: time.Hour, KeyType: issuer.ECDSAP256,
	}, issuer.PrivateKey{})
	node.Must(t, err)
	return tls.Certificate{Certificate: [][]byte{c.Chain[0].Raw, c.Chain[1].Raw}, PrivateKey: c.Key.Signer}
}

// sign sends a signing request to the CA.
func (m *middleman) sign(t *testing.T, ask []byte) (status int, answer string) {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(m.RootPEM())
	client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true}}
	response, err := client.Post(m.CA.URL()+"/1.0/sign", "application/json", bytes.NewReader(ask))
	node.Must(t, err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	node.Must(t, err)
	return response.StatusCode, string(body)
}

// An attacker who can read the plugin's requests to the CA, and reach the CA, gains
// nothing: the CA accepts each token once, and only with the plugin's CSR.
func TestAttackBetweenPluginAndCA(t *testing.T) {
	t.Parallel()
	ca := startRealCA(t)
	m := interpose(t, ca)
	n := newNode(t, m)
	n.Publish(attacker)
	used := <-m.asks
	n.Unpublish(attacker)
	m.keeps.Store(true)
	next := func() []byte {
		expect(t, n.TryPublish(attacker), codes.Unavailable, "")
		return <-m.asks
	}
	carrying := func(csr, ask []byte) []byte {
		var body map[string]any
		node.Must(t, json.Unmarshal(ask, &body))
		body["csr"] = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr}))
		changed, err := json.Marshal(body)
		node.Must(t, err)
		return changed
	}
	own := csrOf(t, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "web-0"}, URIs: []*url.URL{{Scheme: "spiffe", Host: "cluster.local", Path: "/ns/shop/sa/web"}},
	})
	foreign := csrOf(t, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "db.prod"}, DNSNames: []string{"db.prod"}})
	unused := next()
	for _, test := range []struct {
		name    string
		ask     []byte
		status  int
		message string
	}{
		{"a used token with its CSR", used, http.StatusUnauthorized, "authorization"},
		{"a used token with the thief's CSR", carrying(own, used), http.StatusUnauthorized, "authorization"},
		{"a token with the thief's CSR", carrying(own, next()), http.StatusForbidden, "fingerprint"},
		{"a token with a CSR for other names", carrying(foreign, next()), http.StatusForbidden, "fingerprint"},
		{"no attack: a token with its CSR", unused, http.StatusCreated, "CERTIFICATE"},
		{"a replay of the same request", unused, http.StatusUnauthorized, "authorization"},
	} {
		if status, answer := m.sign(t, test.ask); status != test.status || !strings.Contains(answer, test.message) {
			t.Errorf("%s: got status %d: %s", test.name, status, answer)
		}
	}
	if mounted := n.Mounts(); len(mounted) > 0 {
		t.Errorf("still mounted: %q", mounted)
	}
}
