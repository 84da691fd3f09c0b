package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
)

// buildVersion is set by the linker (-X main.buildVersion=v1.2.3) in builds without git and
// a module version.
var buildVersion string

func printVersion(_ context.Context, args []string, _ io.Reader, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("version", flag.ContinueOnError)
	if err := parseFlags(flags, "Usage: kubectl step-csi version\n\nPrints the version of this program.\n", args, stdout, stderr); err != nil {
		return err
	}
	fmt.Fprintln(stdout, "kubectl-step_csi", version())
	return nil
}

func version() string {
	v := buildVersion
	if info, ok := debug.ReadBuildInfo(); ok && v == "" {
		v = info.Main.Version
	}
	return fmt.Sprintf("%s %s %s/%s", v, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
