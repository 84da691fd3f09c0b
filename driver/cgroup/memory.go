// Package cgroup reads the memory limit and the memory usage of the process's control
// group, in version 1 and version 2. See cgroups(7) and
// https://docs.kernel.org/admin-guide/cgroup-v2.html#memory.
package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Memory is the memory controller of a control group and of those that contain it.
type Memory struct {
	groups []string // directories, the innermost first
	files  files
}

// files are the names that differ between the versions.
type files struct {
	limit, usage string
	// reclaimable are the lines of memory.stat about memory that the kernel frees before
	// it kills a process. The pages of a tmpfs are not among them.
	reclaimable []string
}

var (
	version1 = files{"memory.limit_in_bytes", "memory.usage_in_bytes", []string{"total_active_file", "total_inactive_file"}}
	version2 = files{"memory.max", "memory.current", []string{"active_file", "inactive_file", "slab_reclaimable"}}
)

// unlimited is the least limit of version 1 that means no limit.
const unlimited = math.MaxInt64 / 2

// Usage is how much memory a group may use, and uses without what the kernel can free.
type Usage struct{ Limit, Used int64 }

// Free returns how much memory remains.
func (u Usage) Free() int64 { return u.Limit - u.Used }

// OwnMemory finds the memory controller of the process's own group. It returns nil if the
// process has none, or sees none.
func OwnMemory() (*Memory, error) {
	groups, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, fmt.Errorf("read the control groups: %w", err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read the mount table: %w", err)
	}
	return find(string(groups), string(mounts)), nil
}

// find finds the controller in the contents of /proc/self/cgroup and /proc/self/mountinfo.
func find(groups, mounts string) *Memory {
	path, files := ownGroup(groups)
	if path == "" {
		return nil
	}
	root, point := hierarchy(mounts, path, files)
	if point == "" {
		return nil
	}
	m := &Memory{files: files}
	// A container often sees only its own group, as the root of the mount.
	below, err := filepath.Rel(root, path)
	if err != nil || !filepath.IsLocal(below) {
		below = "."
	}
	for ; ; below = filepath.Dir(below) {
		m.groups = append(m.groups, filepath.Join(point, below))
		if below == "." {
			return m
		}
	}
}

// ownGroup returns the path of the process's group with the memory controller.
func ownGroup(groups string) (path string, f files) {
	for line := range strings.Lines(groups) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3) // id, controllers, path
		switch {
		case len(fields) < 3:
		case hasOption(fields[1], "memory"):
			return fields[2], version1
		case fields[1] == "":
			path, f = fields[2], version2
		}
	}
	return path, f
}

// hierarchy returns the root and the mount point of the mount that shows the most of the
// hierarchy around path.
func hierarchy(mounts, path string, f files) (root, point string) {
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for line := range strings.Lines(mounts) {
		// id parent device root point options [optional…] - type source superoptions
		mount, system, found := strings.Cut(line, " - ")
		fields, kind := strings.Fields(mount), strings.Fields(system)
		if !found || len(fields) < 6 || len(kind) == 0 {
			continue
		}
		switch {
		case f.limit == version2.limit && kind[0] == "cgroup2":
		case f.limit == version1.limit && kind[0] == "cgroup" && hasOption(kind[len(kind)-1], "memory"):
		default:
			continue
		}
		r, p := unescape.Replace(fields[3]), unescape.Replace(fields[4])
		if point == "" || contains(r, path) && (!contains(root, path) || len(r) < len(root)) {
			root, point = r, p
		}
	}
	return root, point
}

func hasOption(options, name string) bool {
	for option := range strings.SplitSeq(options, ",") {
		if option == name {
			return true
		}
	}
	return false
}

func contains(root, path string) bool {
	below, err := filepath.Rel(root, path)
	return err == nil && filepath.IsLocal(below)
}

// SeesParent tells whether Usage includes a group that contains the process's own. If not,
// Usage misses the volumes that an earlier container of the pod mounted: they are charged
// to the pod's group.
func (m *Memory) SeesParent() bool { return len(m.groups) > 1 }

// Usage returns the usage of the group that has the least memory left: the process's own,
// or one that contains it. ok is false if none has a limit.
func (m *Memory) Usage() (least Usage, ok bool, err error) {
	for _, group := range m.groups {
		u, limited, err := m.usage(group)
		if err != nil {
			return Usage{}, false, fmt.Errorf("read the memory usage: %w", err)
		}
		if limited && (!ok || u.Free() < least.Free()) {
			least, ok = u, true
		}
	}
	return least, ok, nil
}

func (m *Memory) usage(group string) (u Usage, limited bool, err error) {
	limit, err := os.ReadFile(filepath.Join(group, m.files.limit))
	switch {
	case errors.Is(err, fs.ErrNotExist): // the root of version 2, or no controller
		return u, false, nil
	case err != nil:
		return u, false, err
	}
	text := string(bytes.TrimSpace(limit))
	if text == "max" {
		return u, false, nil
	}
	if u.Limit, err = strconv.ParseInt(text, 10, 64); err != nil {
		return u, false, err
	}
	if u.Limit >= unlimited {
		return u, false, nil
	}
	used, err := os.ReadFile(filepath.Join(group, m.files.usage))
	if err != nil {
		return u, false, err
	}
	if u.Used, err = strconv.ParseInt(string(bytes.TrimSpace(used)), 10, 64); err != nil {
		return u, false, err
	}
	stat, err := os.ReadFile(filepath.Join(group, "memory.stat"))
	if err != nil {
		return u, false, err
	}
	for line := range strings.Lines(string(stat)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		for _, reclaimable := range m.files.reclaimable {
			if name == reclaimable {
				bytes, err := strconv.ParseInt(value, 10, 64)
				if err != nil {
					return u, false, err
				}
				u.Used -= bytes
			}
		}
	}
	return u, true, nil
}
