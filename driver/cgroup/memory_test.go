package cgroup

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const mib = 1 << 20

// group makes a control group of version 2 with this limit, or none.
func group(t *testing.T, directory, limit string, usage, reclaimable int) {
	t.Helper()
	write(t, directory, map[string]string{
		"memory.max":     limit + "\n",
		"memory.current": fmt.Sprintln(usage),
		"memory.stat": fmt.Sprintf("anon 1\nfile %d\nshmem 7\nactive_file %d\ninactive_file 0\nslab_reclaimable %d\nslab 99\n",
			reclaimable, reclaimable/2, reclaimable-reclaimable/2),
	})
}

func write(t *testing.T, directory string, files map[string]string) {
	t.Helper()
	if err := os.MkdirAll(directory, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, contents := range files {
		if err := os.WriteFile(filepath.Join(directory, name), []byte(contents), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func expect(t *testing.T, m *Memory, want Usage, wantOK bool) {
	t.Helper()
	if got, ok, err := m.Usage(); err != nil || ok != wantOK || got != want {
		t.Errorf("usage %+v, %v, %v; want %+v, %v", got, ok, err, want, wantOK)
	}
}

// In version 2, a privileged container sees all groups. The usage is that of the group
// with the least memory left. The volumes of a container that has ended are charged to
// the pod's group.
func TestVersion2(t *testing.T) {
	root := t.TempDir()
	pod := filepath.Join(root, "kubepods.slice/pod-1")
	container := filepath.Join(pod, "cri-1")
	write(t, root, map[string]string{"memory.stat": "anon 1\n"}) // the root has no limit
	group(t, filepath.Dir(pod), "max", 9000*mib, 0)
	group(t, pod, fmt.Sprint(256*mib), 200*mib, 10*mib)
	group(t, container, fmt.Sprint(256*mib), 50*mib, 10*mib)
	m := find("0::/kubepods.slice/pod-1/cri-1\n", "1 2 0:3 / "+root+" rw shared:9 - cgroup2 cgroup rw\n")
	if want := []string{container, pod, filepath.Dir(pod), root}; m == nil || !slices.Equal(m.groups, want) {
		t.Fatalf("%+v, want %q", m, want)
	}
	if !m.SeesParent() {
		t.Error("it does not see the pod's group")
	}
	expect(t, m, Usage{256 * mib, 190 * mib}, true)
	group(t, container, fmt.Sprint(64*mib), 50*mib, 10*mib) // the limits may change at any time
	expect(t, m, Usage{64 * mib, 40 * mib}, true)
	group(t, container, "max", 50*mib, 10*mib)
	group(t, pod, "max", 200*mib, 10*mib)
	expect(t, m, Usage{}, false)
}

// In version 1, a container sees only its own group, where the memory controller has a
// hierarchy of its own.
func TestVersion1(t *testing.T) {
	root := t.TempDir()
	write(t, root, map[string]string{
		"memory.limit_in_bytes": fmt.Sprintln(128 * mib),
		"memory.usage_in_bytes": fmt.Sprintln(70 * mib),
		"memory.stat":           fmt.Sprintf("inactive_file 1\ntotal_inactive_file %d\ntotal_active_file %d\ntotal_shmem 9\n", 6*mib, 4*mib),
	})
	groups := "9:name=systemd:/x\n4:cpu,memory:/kubepods/pod-1/cri-1\n1:cpuset:/y\n0::/\n"
	mounts := "5 4 0:9 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n" +
		"6 4 0:8 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n" +
		"7 4 0:7 /kubepods/pod-1/cri-1 " + root + " rw - cgroup cgroup rw,cpu,memory\n"
	m := find(groups, mounts)
	if m == nil || !slices.Equal(m.groups, []string{root}) {
		t.Fatalf("%+v", m)
	}
	if m.SeesParent() {
		t.Error("it sees more than its own group")
	}
	expect(t, m, Usage{128 * mib, 60 * mib}, true)
	write(t, root, map[string]string{"memory.limit_in_bytes": "9223372036854771712\n"})
	expect(t, m, Usage{}, false)
}

// In a cgroup namespace, the path may lie outside of what is mounted.
func TestNamespace(t *testing.T) {
	root := t.TempDir()
	for _, path := range []string{"/", "/../other", "/kubepods/pod-1"} {
		mounted := map[string]string{"/": "/", "/../other": "/", "/kubepods/pod-1": "/kubepods/pod-2"}[path]
		m := find("0::"+path, "1 2 0:3 "+mounted+" "+root+" rw - cgroup2 cgroup rw")
		if m == nil || !slices.Contains(m.groups, root) {
			t.Errorf("%s, mounted %s: %+v", path, mounted, m)
		}
	}
	// The mount that shows more of the hierarchy has the pod's group, too.
	m := find("0::/a/b", "1 2 0:3 /a/b /own rw - cgroup2 cgroup rw\n1 2 0:3 / /all\\040of rw - cgroup2 cgroup rw\n1 2 0:3 /c /other rw - cgroup2 cgroup rw")
	if m == nil || !slices.Equal(m.groups, []string{"/all of/a/b", "/all of/a", "/all of"}) {
		t.Errorf("%+v", m)
	}
}

// Without a memory controller, and with any other lines in the files, there is no limit.
func TestNoController(t *testing.T) {
	for groups, mounts := range map[string]string{
		"":                 "",
		"0::/":             "",
		"4:memory:/a":      "1 2 0:3 / /sys rw - cgroup2 cgroup rw\n1 2 0:3 / /cpu rw - cgroup cgroup rw,cpu",
		"4:cpu:/a":         "1 2 0:3 / /memory rw - cgroup cgroup rw,memory",
		"::::\n\n4:memory": "- - -\n\n1 2 3 - \n - cgroup",
	} {
		if m := find(groups, mounts); m != nil {
			t.Errorf("%q, %q: %+v", groups, mounts, m)
		}
	}
}

func TestUnreadable(t *testing.T) {
	root := t.TempDir()
	m := &Memory{[]string{root}, version2}
	expect(t, m, Usage{}, false)
	for _, files := range []map[string]string{
		{"memory.max": "many"},
		{"memory.max": "1000"},
		{"memory.current": "x"},
		{"memory.current": "500"},
		{"memory.stat": "active_file x"},
	} {
		write(t, root, files)
		if _, ok, err := m.Usage(); err == nil || ok || !strings.Contains(err.Error(), "read the memory usage") {
			t.Errorf("with %q: %v, %v", files, ok, err)
		}
	}
}

// The tests' own process has some group, or none; reading it never fails.
func TestOwnMemory(t *testing.T) {
	m, err := OwnMemory()
	if err != nil {
		t.Fatal(err)
	}
	if m == nil {
		return
	}
	if u, ok, err := m.Usage(); err != nil || ok && (u.Limit <= 0 || u.Used < 0) {
		t.Errorf("%+v, %v, %v", u, ok, err)
	}
}
