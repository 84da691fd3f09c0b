package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/rest"
)

const uninstallCheckUsage = `Usage: step-csi uninstall-check [flags]

Exits with status 1 while pods of the cluster use volumes of the CSI driver, and lists
them. Without the node plugin, the kubelet cannot remove such pods. The chart runs this
command in a pod before it uninstalls. The service account of the pod needs the right to
list pods.
`

// uninstallCheck looks for pods that use volumes of a driver.
type uninstallCheck struct {
	driverName string
	// The node plugin's own pods, if only the pods on their nodes count. Without a namespace,
	// all pods count.
	pluginNamespace string
	pluginLabels    labels.Selector
	// undo is the command after which Helm accepts upgrades again. When a check fails, Helm
	// leaves the release in the state "uninstalling".
	undo string
}

func checkUninstall(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var u uninstallCheck
	var own string
	flags := flag.NewFlagSet("uninstall-check", flag.ContinueOnError)
	flags.StringVar(&u.driverName, "driver-name", "csi.step-ca.io", "`NAME` of the CSI driver")
	flags.StringVar(&u.pluginNamespace, "plugin-namespace", "", "count only pods on nodes where a pod of this `NAMESPACE` with --plugin-labels runs")
	flags.StringVar(&own, "plugin-labels", "", "`LABELS` of the node plugin's pods, as in kubectl get pods --selector")
	flags.StringVar(&u.undo, "undo", "", "`COMMAND` that ends the uninstall that was refused")
	if err := parseFlags(flags, 0, uninstallCheckUsage, args, stdout, stderr); err != nil {
		return err
	}
	var err error
	if u.pluginLabels, err = labels.Parse(own); err != nil {
		return fmt.Errorf("--plugin-labels: %w", err)
	}
	if (u.pluginNamespace == "") != u.pluginLabels.Empty() {
		return errors.New("--plugin-namespace and --plugin-labels: set both, or none")
	}
	api, err := rest.InClusterConfig()
	if err != nil {
		return fmt.Errorf("find the API server: %w; this command runs in a pod", err)
	}
	return u.run(ctx, api, stdout)
}

// run returns an error that lists the pods, if there are any.
func (u uninstallCheck) run(ctx context.Context, api *rest.Config, stdout io.Writer) error {
	users, err := u.list(ctx, api)
	if err != nil {
		return fmt.Errorf("find the pods that use volumes of %s: %w", u.driverName, err)
	}
	if len(users) == 0 {
		_, err := fmt.Fprintf(stdout, "no pod uses a volume of %s\n", u.driverName)
		return err
	}
	const shown = 10
	var b strings.Builder
	fmt.Fprintf(&b, "pods that use volumes of %s: %d\n", u.driverName, len(users))
	for _, p := range users[:min(shown, len(users))] {
		fmt.Fprintf(&b, "  %s/%s on the node %s\n", p.Metadata.Namespace, p.Metadata.Name, p.Spec.NodeName)
	}
	if len(users) > shown {
		fmt.Fprintf(&b, "  and %d others\n", len(users)-shown)
	}
	b.WriteString("without the node plugin, nothing renews their certificates, and the kubelet cannot remove these pods.\n" +
		"Delete them, or change them to use other volumes, and uninstall again. To uninstall anyway, run helm uninstall --no-hooks.")
	if u.undo != "" {
		b.WriteString("\nTo keep the release, run: " + u.undo)
	}
	return errors.New(b.String())
}

// pod is what the check reads of a Pod.
type pod struct {
	Metadata struct {
		Namespace, Name   string
		Labels            labels.Set
		DeletionTimestamp string
	}
	Spec struct {
		NodeName string
		Volumes  []struct {
			CSI struct{ Driver string }
		}
	}
	Status struct{ Phase string }
}

// uses tells whether the kubelet still has to unmount a volume of the driver. It unmounts the
// volumes of a completed pod without being asked, and those of a deleted one before the pod
// disappears.
func (p *pod) uses(driver string) bool {
	if completed := p.Status.Phase == "Succeeded" || p.Status.Phase == "Failed"; completed && p.Metadata.DeletionTimestamp == "" {
		return false
	}
	for _, v := range p.Spec.Volumes {
		if v.CSI.Driver == driver {
			return true
		}
	}
	return false
}

// list returns the pods that use volumes of the driver, in the order of their names.
func (u uninstallCheck) list(ctx context.Context, api *rest.Config) ([]pod, error) {
	client, err := rest.HTTPClientFor(api)
	if err != nil {
		return nil, err
	}
	defer client.CloseIdleConnections()
	client.Timeout = 30 * time.Second // of one part of the list
	var users []pod
	nodes := map[string]bool{} // of the node plugin's pods
	each := func(p pod) {
		if u.pluginNamespace != "" && p.Metadata.Namespace == u.pluginNamespace && u.pluginLabels.Matches(p.Metadata.Labels) {
			nodes[p.Spec.NodeName] = true
		}
		if p.uses(u.driverName) {
			p.Metadata.Labels, p.Spec.Volumes = nil, nil
			users = append(users, p)
		}
	}
	for next, more := "", true; more; more = next != "" {
		if next, err = listPart(ctx, client, api.Host, next, each); err != nil {
			return nil, err
		}
	}
	if u.pluginNamespace != "" {
		users = slices.DeleteFunc(users, func(p pod) bool { return !nodes[p.Spec.NodeName] })
	}
	slices.SortFunc(users, func(a, b pod) int {
		return cmp.Or(cmp.Compare(a.Metadata.Namespace, b.Metadata.Namespace), cmp.Compare(a.Metadata.Name, b.Metadata.Name))
	})
	return users, nil
}

// listPart requests a part of the list of pods and returns the beginning of the next part. It
// requests only pods that have a node: the volumes of others are not mounted.
func listPart(ctx context.Context, client *http.Client, host, from string, each func(pod)) (next string, err error) {
	query := url.Values{
		"limit":         {"500"},
		"fieldSelector": {"spec.nodeName!="},
	}
	if from != "" {
		query.Set("continue", from)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(host, "/")+"/api/v1/pods?"+query.Encode(), nil)
	if err != nil {
		return "", err
	}
	request.Header.Set("Accept", "application/json")
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		var status struct{ Message string }
		// Without a message, the status code must do.
		_ = json.NewDecoder(io.LimitReader(response.Body, 64<<10)).Decode(&status)
		return "", fmt.Errorf("the API server answers %s: %s", response.Status, status.Message)
	}
	if next, err = decodePods(json.NewDecoder(response.Body), each); err != nil {
		return "", fmt.Errorf("read the list of pods: %w", err)
	}
	return next, nil
}

// decodePods decodes a PodList. It holds one pod at a time in memory: users can make pods of
// more than a megabyte.
func decodePods(d *json.Decoder, each func(pod)) (next string, err error) {
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return "", fmt.Errorf("it begins with %v: %w", t, cmp.Or(err, errNoList))
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return "", err
		}
		switch key {
		case "metadata":
			var m struct{ Continue string }
			if err := d.Decode(&m); err != nil {
				return "", err
			}
			next = m.Continue
		case "items":
			if t, err := d.Token(); err != nil || t != json.Delim('[') {
				return "", fmt.Errorf("the items begin with %v: %w", t, cmp.Or(err, errNoList))
			}
			for d.More() {
				var p pod
				if err := d.Decode(&p); err != nil {
					return "", err
				}
				each(p)
			}
			if _, err := d.Token(); err != nil {
				return "", err
			}
		default:
			if err := d.Decode(&json.RawMessage{}); err != nil {
				return "", err
			}
		}
	}
	_, err = d.Token() // without it, an answer that was cut off would look complete
	return next, err
}

var errNoList = errors.New("not a list of pods")
