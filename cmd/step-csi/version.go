package main

import (
	"cmp"
	"fmt"
	"runtime"
	"runtime/debug"
)

// buildVersion is set by the linker (-X main.buildVersion=v1.2.3) in image builds,
// which have neither git nor a module version.
var buildVersion string

// version returns the release and the version of Go.
func version() string {
	return fmt.Sprintf("%s %s %s/%s", release(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

// release returns the version of step-csi: buildVersion, the version of the module, or
// the commit.
func release() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return cmp.Or(buildVersion, "unknown")
	}
	v := info.Main.Version
	switch {
	case buildVersion != "":
		v = buildVersion
	case v == "" || v == "(devel)":
		v = "devel"
		for _, setting := range info.Settings {
			switch {
			case setting.Key == "vcs.revision":
				v += "+" + setting.Value[:min(12, len(setting.Value))]
			case setting.Key == "vcs.modified" && setting.Value == "true":
				v += ".modified"
			}
		}
	}
	return v
}
