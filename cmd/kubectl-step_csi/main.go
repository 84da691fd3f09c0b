// Command kubectl-step_csi is a plugin of kubectl, for the administrators and users of
// step-csi: kubectl runs it as "kubectl step-csi".
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
)

// errUsage is an error in the command line, which the command has printed. The exit
// status is 2.
var errUsage = errors.New("usage")

// command is what follows "kubectl step-csi". Its name may have several words.
type command struct {
	name, summary string
	// run returns errUsage if it has printed what is wrong with args, and flag.ErrHelp if
	// it has printed its help.
	run func(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error
}

// commands returns all commands, in the order in which the help lists them.
func commands() []command {
	return []command{
		{"convert", "rewrite manifests for cert-manager or autocert for step-csi", convert},
		{"version", "print the version", printVersion},
	}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	status := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(status)
}

// run returns the exit status: 2 for a wrong command line, 1 for other errors.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		fmt.Fprint(stderr, usage())
		return 2
	}
	switch args[0] {
	case "help", "--help", "-help", "-h":
		fmt.Fprint(stdout, usage())
		return 0
	case "--version", "-version":
		args = []string{"version"}
	}
	for _, c := range commands() {
		words := strings.Fields(c.name)
		if len(args) < len(words) || strings.Join(args[:len(words)], " ") != c.name {
			continue
		}
		err := c.run(ctx, args[len(words):], stdin, stdout, stderr)
		switch {
		case err == nil, errors.Is(err, flag.ErrHelp):
			return 0
		case errors.Is(err, errUsage):
			return 2
		}
		fmt.Fprintf(stderr, "kubectl step-csi %s: %v\n", c.name, err)
		return 1
	}
	fmt.Fprintf(stderr, "kubectl step-csi: unknown command %q\n\n%s", args[0], usage())
	return 2
}

func usage() string {
	var text strings.Builder
	text.WriteString("kubectl step-csi helps to administer and use step-csi.\n\nUsage:\n\n")
	for _, c := range commands() {
		fmt.Fprintf(&text, "  kubectl step-csi %-14s %s\n", c.name, c.summary)
	}
	text.WriteString("\nEach command describes itself: kubectl step-csi convert --help\n")
	return text.String()
}

// parseFlags parses the flags of a command, which takes no other arguments. The help is
// the usage with the flags.
func parseFlags(flags *flag.FlagSet, usage string, args []string, stdout, stderr io.Writer) error {
	var help strings.Builder
	help.WriteString(usage + "\nFlags:\n\n")
	flags.VisitAll(func(f *flag.Flag) {
		value, text := flag.UnquoteUsage(f)
		dashes := "--"
		if len(f.Name) == 1 {
			dashes = "-"
		}
		if f.DefValue != "" && f.DefValue != "false" {
			text += " (" + f.DefValue + ")"
		}
		fmt.Fprintf(&help, "  %-24s %s\n", strings.TrimSpace(dashes+f.Name+" "+value), text)
	})
	flags.SetOutput(io.Discard)
	err := flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, help.String())
		return err
	case err == nil && flags.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if err != nil {
		fmt.Fprintf(stderr, "kubectl step-csi %s: %v\n\n%s", flags.Name(), err, help.String())
		return errUsage
	}
	return nil
}
