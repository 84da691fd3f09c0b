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
// Go's: all from the build's own information.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown " + runtime.Version()
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
	return fmt.Sprintf("%s %s %s/%s", v, info.GoVersion, runtime.GOOS, runtime.GOARCH)
}
