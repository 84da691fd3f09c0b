package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const controlGroups = "/sys/fs/cgroup"

// controlGroup returns the control group of all pods of a cluster. It separates the
// pods of the cluster from the kubelets of other clusters.
func controlGroup(name string) string { return "/step-csi-" + name }

// hierarchies returns the directories to make control groups in: one directory on
// cgroup v2, one per controller on v1.
func hierarchies() ([]string, error) {
	if _, err := os.Stat(filepath.Join(controlGroups, "cgroup.controllers")); err == nil {
		return []string{controlGroups}, nil
	}
	entries, err := os.ReadDir(controlGroups)
	if err != nil {
		return nil, fmt.Errorf("control groups: %w", err)
	}
	var all []string
	for _, entry := range entries {
		directory := filepath.Join(controlGroups, entry.Name())
		_, err := os.Stat(filepath.Join(directory, "cgroup.procs"))
		// Symbolic links are aliases, such as cpu for cpu,cpuacct.
		if err == nil && entry.IsDir() {
			all = append(all, directory)
		}
	}
	return all, nil
}

func makeControlGroups(name string) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	for _, hierarchy := range all {
		group := filepath.Join(hierarchy, controlGroup(name))
		if err := os.Mkdir(group, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if err := delegate(hierarchy, group); err != nil {
			return err
		}
	}
	return nil
}

// delegate enables the controllers in the new group. In cgroup v2, controllers are off
// by default. In v1, a new cpuset is empty.
func delegate(hierarchy, group string) error {
	if controllers, err := os.ReadFile(filepath.Join(group, "cgroup.controllers")); err == nil {
		for _, controller := range strings.Fields(string(controllers)) {
			if err := os.WriteFile(filepath.Join(group, "cgroup.subtree_control"), []byte("+"+controller), 0); err != nil {
				return err
			}
		}
	}
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		value, err := os.ReadFile(filepath.Join(hierarchy, file))
		if err != nil || len(bytes.TrimSpace(value)) == 0 {
			continue
		}
		if err := os.WriteFile(filepath.Join(group, file), value, 0); err != nil {
			return err
		}
	}
	return nil
}

// removeControlGroups removes the cluster's groups, the innermost first. It retries,
// because the kernel may still release the processes.
func removeControlGroups(name string) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	for _, hierarchy := range all {
		for begin := time.Now(); ; time.Sleep(20 * time.Millisecond) {
			err := removeTree(filepath.Join(hierarchy, controlGroup(name)))
			if err == nil {
				break
			}
			if time.Since(begin) > time.Minute {
				return fmt.Errorf("remove the control groups: %w", err)
			}
		}
	}
	return nil
}

func removeTree(root string) error {
	var groups []string
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			groups = append(groups, path)
		}
		return nil
	})
	for _, group := range slices.Backward(groups) {
		if err := os.Remove(group); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return err
}
