package main

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// buildVersion is set by the linker (-X main.buildVersion=v1.2.3) where there is
// neither git nor a module version to take it from: in the build of an image.
var buildVersion string

// version is the module's version, or the commit that it was built from, with
// Go's.
func version() string {
	return fmt.Sprintf("%s %s %s/%s", release(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

// release is all of the version that is not Go's, from the build's own
// information.
func release() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return or(buildVersion, "unknown")
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
