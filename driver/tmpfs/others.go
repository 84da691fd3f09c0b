package tmpfs

import (
	"fmt"
	"os"
	"strings"
)

// Other is a whole tmpfs of another source.
type Other struct{ Source, Path string }

// ListOthers returns the tmpfs mounts of other sources than own whose path contains part,
// in the mount namespace of the process. Whether a mount is one of this package, Record
// tells. It skips lines of the mount table that it cannot parse.
func ListOthers(own, part string) ([]Other, error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read the mount table: %w", err)
	}
	return listOthers(string(table), own, part), nil
}

func listOthers(table, own, part string) (others []Other) {
	for line := range strings.Lines(table) {
		// A mount table has thousands of lines, and few of them are parsed.
		if !strings.Contains(line, part) || !strings.Contains(line, " - tmpfs ") || strings.Contains(line, " - tmpfs "+own+" ") {
			continue
		}
		mounts, err := parseMountInfo(line)
		if err != nil {
			continue
		}
		for _, m := range mounts {
			path := unescape.Replace(m.MountPoint)
			if m.FsType == "tmpfs" && m.Source != own && m.Root == "/" && strings.Contains(path, part) {
				others = append(others, Other{Source: unescape.Replace(m.Source), Path: path})
			}
		}
	}
	return others
}
