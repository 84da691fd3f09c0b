package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/flexstack/step-csi/cmd/kubectl-step_csi/policytest"
)

const policyTestUsage = `Usage: kubectl step-csi policy test [flags]

Evaluates a policy for a pod and a request, offline, and shows what each validation says. It
calls neither the cluster nor a CA.

  kubectl step-csi policy test -f values.yaml --namespace shop --service-account orders \
      --service-names orders --dns-names orders.example.com
  kubectl step-csi policy test -f values.yaml --pod deployment.yaml

The flags named like volume attributes, and --attribute, describe the pod's request.
With --pod, the manifests have them: each volume of the driver is a request. The file - is the
standard input.

Three things are not known here: the names in the certificate that the CA shows and the address
of the API server, which no pod gets, and the default lifetime of the CA's provisioner.

The exit status is 0 if the policy allows all requests, 1 if it denies one, and 2 if a flag or
a file is wrong, such as a policy that does not compile.
`

// errDenied means that the policy denies a request, which the command has printed. The exit
// status is 1.
var errDenied = errors.New("denied")

// attributeFlag is a volume attribute with a flag of its own.
type attributeFlag struct{ key, usage string }

// shorthands returns the attributes with a flag of their own.
func shorthands() []attributeFlag {
	return []attributeFlag{
		{"issuer", "`NAME` of the issuer"},
		{"service-names", "`LIST` of names of Services, separated by commas"},
		{"dns-names", "`LIST` of DNS names"},
		{"ip-sans", "`LIST` of IP addresses"},
		{"uri-sans", "`LIST` of URIs"},
		{"email-sans", "`LIST` of e-mail addresses"},
		{"spiffe", "false leaves out the SPIFFE ID of the service account, `BOOL`"},
		{"common-name", "common name, `TEXT`"},
		{"organizations", "`LIST` of organizations"},
		{"duration", "lifetime, a `DURATION` such as 8h"},
	}
}

// policyTestFlags are the flags.
type policyTestFlags struct {
	policytest.Options
	output string
}

func testPolicy(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	o, err := parsePolicyTest(args, stdout, stderr)
	if err != nil {
		return err
	}
	verdicts, err := policytest.Evaluate(ctx, o.Options, stdin)
	if err != nil {
		fmt.Fprintf(stderr, "kubectl step-csi policy test: %v\n", err)
		return errUsage
	}
	if o.output == "json" {
		encoder := json.NewEncoder(stdout)
		encoder.SetIndent("", "  ")
		encoder.SetEscapeHTML(false)
		err = encoder.Encode(verdicts)
	} else {
		err = policytest.Print(stdout, verdicts)
	}
	if err == nil && slices.ContainsFunc(verdicts, func(v policytest.Verdict) bool { return !v.Allowed }) {
		err = errDenied
	}
	return err
}

func parsePolicyTest(args []string, stdout, stderr io.Writer) (policyTestFlags, error) {
	o := policyTestFlags{Options: policytest.Options{Attributes: map[string]string{}}}
	flags := flag.NewFlagSet("policy test", flag.ContinueOnError)
	flags.Func("f", "`FILE` of chart values, repeated as with helm, or the configuration file of step-csi ra or step-csi node; default: the chart's defaults",
		func(path string) error { o.Files = append(o.Files, path); return nil })
	flags.StringVar(&o.Release.Name, "release", "step-csi", "`NAME` of the Helm release, whose Services have reserved names")
	flags.StringVar(&o.Release.Namespace, "release-namespace", "step-ca", "`NAMESPACE` of the Helm release")
	flags.StringVar(&o.PodFile, "pod", "", "`FILE` with the manifests of pods, or of Deployments and others that make pods")
	flags.StringVar(&o.Pod.Namespace, "namespace", "", "`NAMESPACE` of the pod; default: that of the manifest, or default")
	flags.StringVar(&o.Pod.Namespace, "n", "", "the same, `NAMESPACE`")
	flags.StringVar(&o.Pod.ServiceAccount, "service-account", "", "`NAME` of the pod's service account; default: that of the manifest, or default")
	flags.StringVar(&o.Pod.Name, "pod-name", "", "`NAME` of the pod; default: one as its controller makes it, or test-pod")
	flags.StringVar(&o.Pod.UID, "pod-uid", "00000000-0000-4000-8000-000000000000", "`UID` of the pod")
	flags.StringVar(&o.Pod.Node, "node", "", "`NAME` of the pod's node; default: that of the manifest, or node")
	for _, s := range shorthands() {
		flags.Func(s.key, s.usage, func(value string) error { return o.setAttribute(s.key, value) })
	}
	flags.Func("attribute", "another volume attribute, `KEY=VALUE`; can be repeated", func(text string) error {
		key, value, found := strings.Cut(text, "=")
		if !found {
			return errors.New("write KEY=VALUE")
		}
		return o.setAttribute(key, value)
	})
	flags.Func("o", "output `FORMAT`; json, or text for people by default", func(format string) error {
		if o.output = format; format != "json" {
			return errors.New("the only format is json")
		}
		return nil
	})
	err := parseFlags(flags, policyTestUsage, args, stdout, stderr)
	if err == nil && o.PodFile != "" && len(o.Attributes) > 0 {
		fmt.Fprintf(stderr, "kubectl step-csi policy test: --%s: the request is that of the manifests in --pod; leave out one of them\n", slices.Min(slices.Collect(maps.Keys(o.Attributes))))
		err = errUsage
	}
	return o, err
}

func (o policyTestFlags) setAttribute(key, value string) error {
	if _, given := o.Attributes[key]; given {
		return fmt.Errorf("the attribute %s is given twice; separate names by commas", key)
	}
	o.Attributes[key] = value
	return nil
}
