// Command step-csi is a Kubernetes CSI node plugin that gives every pod its own X.509
// certificate from a Smallstep step-ca. It is also the registration authority, with
// which no node needs a credential of the CA.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"k8s.io/klog/v2"
)

const usage = `step-csi gives every pod its own X.509 certificate from a Smallstep step-ca.

Usage:

  step-csi node [flags]       run the CSI node plugin, on every node
  step-csi ra [flags]         run the registration authority, for all nodes
  step-csi status             print the state of the node plugin and its volumes
  step-csi verify DIR         verify and print the certificate files of a volume
  step-csi uninstall-check    find the pods that could not be removed without the node plugin
  step-csi version            print the version

"step-csi node --help" and "step-csi ra --help" list the flags and show the
configuration. With --check-config, both only check it. To reload a program after a
renewal, use step-csi-reload.
`

// errUsage is an error in the command line, which was printed already. The exit status
// is 2.
var errUsage = errors.New("usage")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	klog.Flush()
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
	case errors.Is(err, errUsage):
		os.Exit(2)
	default:
		fmt.Fprintf(os.Stderr, "step-csi: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) == 0 {
		fmt.Fprint(stderr, usage)
		return errUsage
	}
	switch args[0] {
	case "node":
		return node(ctx, args[1:], stdout, stderr)
	case "ra":
		return serveRA(ctx, args[1:], stdout, stderr)
	case "reload":
		fmt.Fprintln(stderr, "step-csi: this command is now a program of its own with the same flags: use step-csi-reload instead of step-csi reload")
		return errUsage
	case "status":
		return status(ctx, args[1:], stdout, stderr)
	case "verify":
		return verify(args[1:], stdout, stderr)
	case "uninstall-check":
		return checkUninstall(ctx, args[1:], stdout, stderr)
	case "version", "--version", "-version":
		fmt.Fprintln(stdout, "step-csi", version())
		return nil
	case "help", "--help", "-help", "-h":
		fmt.Fprint(stdout, usage)
		return nil
	}
	fmt.Fprintf(stderr, "step-csi: unknown command %q\n\n%s", args[0], usage)
	return errUsage
}

// parseFlags parses the flags of a command, which must leave as many arguments as
// operands says. The help is the usage with the flags.
func parseFlags(flags *flag.FlagSet, operands int, usage string, args []string, stdout, stderr io.Writer) error {
	var help strings.Builder
	help.WriteString(usage + "\nFlags:\n\n")
	flags.VisitAll(func(f *flag.Flag) {
		value, text := flag.UnquoteUsage(f)
		if f.DefValue != "" {
			text += " (" + f.DefValue + ")"
		}
		fmt.Fprintf(&help, "  --%-22s %s\n", f.Name+" "+value, text)
	})
	flags.SetOutput(io.Discard)
	err := flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, help.String())
		return err
	case err == nil && flags.NArg() > operands:
		err = fmt.Errorf("unexpected argument %q", flags.Arg(operands))
	case err == nil && flags.NArg() < operands:
		err = errors.New("name one directory")
	}
	if err != nil {
		fmt.Fprintf(stderr, "step-csi %s: %v\n\n%s", flags.Name(), err, help.String())
		return errUsage
	}
	return nil
}
