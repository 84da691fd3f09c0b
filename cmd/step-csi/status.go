package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/flexstack/step-csi/driver"
)

const statusUsage = `Usage: step-csi status [flags]

Prints the state of the node plugin and its volumes: whose they are, when their
certificates expire, when they are renewed, and why not. Those that expire first come
first. Run it in the node plugin's pod:

  kubectl -n NAMESPACE exec POD -- /step-csi status

The states of a volume: ok; waiting (for the kubelet, for up to 90 s after a start of
the node plugin); failing (the last renewal failed, and is retried); overdue;
unmanaged (it is not renewed); expired.

The exit status is 1 if something that it prints fails, or if it gets no answer:
the node plugin or an issuer is not ready, volumes of another driver name are not
renewed, or a volume is in another state than ok and waiting.
`

const (
	// statusSocket is the variable with the path of the status socket. The chart sets it.
	statusSocket = "STEP_CSI_STATUS_SOCKET"
	// statusTimeout is how long to wait for the answer, and statusSize its largest size.
	statusTimeout = 10 * time.Second
	statusSize    = 64 << 20
)

// statusOptions are the flags of "step-csi status".
type statusOptions struct {
	socket, output, pod string
	failing             bool
}

func status(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parseStatusOptions(args, stdout, stderr)
	if err != nil {
		return err
	}
	s, err := getStatus(ctx, o.socket)
	if err != nil {
		return fmt.Errorf("no answer from the node plugin at %s: %w; run this command in the node plugin's pod, or set --socket", o.socket, err)
	}
	s.Volumes = slices.DeleteFunc(s.Volumes, func(v driver.VolumeStatus) bool {
		return o.failing && !v.Fails() || o.pod != "" && v.Namespace+"/"+v.Pod != o.pod
	})
	if o.output == "json" {
		encoder := json.NewEncoder(stdout)
		encoder.SetIndent("", "  ")
		err = encoder.Encode(s)
	} else {
		err = printStatus(stdout, s, o.output == "wide")
	}
	if err != nil {
		return err
	}
	return failure(s, o)
}

func parseStatusOptions(args []string, stdout, stderr io.Writer) (o statusOptions, err error) {
	flags := flag.NewFlagSet("status", flag.ContinueOnError)
	flags.StringVar(&o.socket, "socket", cmp.Or(os.Getenv(statusSocket), driver.StatusSocket("/var/lib/kubelet/plugins/csi.step-ca.io/csi.sock")),
		"`PATH` of the node plugin's status.sock, beside its CSI socket; by default $"+statusSocket)
	flags.StringVar(&o.output, "o", "table", "output `FORMAT`: table, wide or json")
	flags.StringVar(&o.pod, "pod", "", "only the volumes of this pod, `NAMESPACE/NAME`")
	flags.BoolVar(&o.failing, "failing", false, "only the volumes that fail")
	if err := parseFlags(flags, 0, statusUsage, args, stdout, stderr); err != nil {
		return o, err
	}
	namespace, name, _ := strings.Cut(o.pod, "/")
	switch {
	case !slices.Contains([]string{"table", "wide", "json"}, o.output):
		fmt.Fprintf(stderr, "step-csi status: -o: %q is not one of table, wide, json\n", o.output)
		return o, errUsage
	case o.pod != "" && (namespace == "" || name == "" || strings.Contains(name, "/")):
		fmt.Fprintf(stderr, "step-csi status: --pod: %q is not of the form NAMESPACE/NAME\n", o.pod)
		return o, errUsage
	}
	return o, nil
}

// getStatus asks the node plugin.
func getStatus(ctx context.Context, socket string) (s driver.Status, err error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://node-plugin"+driver.StatusPath, nil)
	if err != nil {
		return s, err
	}
	answer, err := client.Do(request)
	if failed, is := errors.AsType[*url.Error](err); is {
		err = failed.Err // the URL says nothing
	}
	if err != nil {
		return s, err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, statusSize))
	switch {
	case err != nil:
		return s, err
	case answer.StatusCode != http.StatusOK:
		return s, fmt.Errorf("%s: %s", answer.Status, strings.TrimSpace(string(body)))
	}
	return s, json.Unmarshal(body, &s)
}

// failure returns what of the printed status fails.
func failure(s driver.Status, o statusOptions) error {
	fail := 0
	for _, v := range s.Volumes {
		if v.Fails() {
			fail++
		}
	}
	switch {
	case o.pod != "" && !o.failing && len(s.Volumes) == 0:
		return fmt.Errorf("pod %s has no volume of this driver on this node", o.pod)
	case fail > 0:
		return fmt.Errorf("volumes that fail: %d", fail)
	case s.Fails():
		return errors.New("the node plugin has a problem")
	}
	return nil
}

func printStatus(stdout io.Writer, s driver.Status, wide bool) error {
	var text strings.Builder
	fmt.Fprintf(&text, "Node:      %s\nDriver:    %s\nVersion:   %s\n", s.Node, s.Driver, s.Version)
	switch {
	case s.Ready:
		fmt.Fprintf(&text, "Ready:     yes\n")
	default:
		fmt.Fprintf(&text, "Ready:     no: %s\n", printable(s.NotReady))
	}
	switch {
	case s.Registered == nil:
		fmt.Fprintf(&text, "Kubelet:   registered by another program\n")
	case *s.Registered:
		fmt.Fprintf(&text, "Kubelet:   registered\n")
	default:
		fmt.Fprintf(&text, "Kubelet:   not registered\n")
	}
	for _, i := range s.Issuers {
		state := "ready"
		if !i.Ready {
			state = "not ready: " + printable(i.Reason)
		}
		fmt.Fprintf(&text, "Issuer:    %s: %s\n", printable(i.Name), state)
	}
	for _, o := range s.OtherDrivers {
		fmt.Fprintf(&text, "Driver %q: %d volumes are not renewed, because no process on this node serves it; the first certificate expires at %s\n", o.Driver, o.Volumes, o.NotAfter)
	}
	text.WriteString("\n")
	if len(s.Volumes) == 0 {
		text.WriteString("No volumes.\n")
	}
	if _, err := io.WriteString(stdout, text.String()); err != nil || len(s.Volumes) == 0 {
		return err
	}
	table := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	header := []string{"POD", "VOLUME", "ISSUER", "NAMES", "EXPIRES", "RENEWS"}
	if wide {
		header = append(header, "ISSUED", "SERIAL", "DRIVER", "PATH")
	}
	fmt.Fprintln(table, strings.Join(append(header, "STATUS"), "\t"))
	for _, v := range s.Volumes {
		row := []string{podCell(v), v.Volume, v.Issuer, namesOf(v, wide), when(v.NotAfter, s.Time), renews(v.Renewal, s.Time)}
		if v.TrustOnly {
			row[3], row[5] = "trust only", ""
		}
		if wide {
			row = append(row, when(v.Issued, s.Time), v.Serial, v.Driver, v.Path)
		}
		row = append(row, stateOf(v, s.Driver))
		for i, cell := range row {
			row[i] = cmp.Or(printable(cell), "-")
		}
		fmt.Fprintln(table, strings.Join(row, "\t"))
	}
	return table.Flush()
}

// podCell returns the pod. Of a volume that could not be read, the path has the pod's UID.
func podCell(v driver.VolumeStatus) string {
	if v.Pod == "" {
		return v.Path
	}
	return v.Namespace + "/" + v.Pod
}

func namesOf(v driver.VolumeStatus, wide bool) string {
	shown := len(v.Names)
	if !wide {
		shown = min(shown, 1)
	}
	text := strings.Join(v.Names[:shown], ",")
	if more := len(v.Names) - shown + v.MoreNames; more > 0 {
		text += " +" + strconv.Itoa(more)
	}
	return text
}

// when returns a time, relative and absolute.
func when(t, now time.Time) string {
	if t.IsZero() {
		return ""
	}
	relative := "in " + duration.HumanDuration(t.Sub(now))
	if !t.After(now) {
		relative = duration.HumanDuration(now.Sub(t)) + " ago"
	}
	return relative + " (" + t.UTC().Format(time.RFC3339) + ")"
}

// renews returns when the next renewal or retry begins.
func renews(t, now time.Time) string {
	switch {
	case t.IsZero():
		return "never"
	case !t.After(now):
		return "now"
	}
	return "in " + duration.HumanDuration(t.Sub(now))
}

func stateOf(v driver.VolumeStatus, own string) string {
	text := v.State
	if v.Failures > 1 {
		text += fmt.Sprintf(" (%d times)", v.Failures)
	}
	if v.Reason != "" {
		text += ": " + v.Reason
	}
	if v.LimitedBy != "" {
		text += "; limited by " + v.LimitedBy
	}
	if v.Driver != own {
		text = "driver " + v.Driver + ": " + text
	}
	return text
}

// printable replaces what does not print: pods and CAs choose some of the texts, which must
// not control a terminal.
func printable(text string) string {
	return strings.Map(func(c rune) rune {
		if !unicode.IsPrint(c) {
			return ' '
		}
		return c
	}, text)
}
