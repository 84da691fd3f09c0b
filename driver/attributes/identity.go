package attributes

import (
	"fmt"
	"maps"
	"regexp"
	"strings"

	"github.com/flexstack/step-csi/issuer"
)

// kubelets is how the keys begin that the kubelet adds to a volume's context.
// Where a user has written one, the kubelet overwrites it; but only if the
// CSIDriver object has podInfoOnMount. See
// https://kubernetes-csi.github.io/docs/pod-info.html.
const kubelets = "csi.storage.k8s.io/"

// Identity takes the pod's identity, which the kubelet adds, out of a volume's
// context, and returns the user's attributes. Whatever else is the kubelet's,
// such as tokens, stays behind. With an error, pod has what could be read, for
// logs only.
func Identity(volumeContext map[string]string, node string) (pod issuer.Pod, user map[string]string, err error) {
	pod = issuer.Pod{
		Namespace:      volumeContext[kubelets+"pod.namespace"],
		Name:           volumeContext[kubelets+"pod.name"],
		UID:            volumeContext[kubelets+"pod.uid"],
		ServiceAccount: volumeContext[kubelets+"serviceAccount.name"],
		Node:           node,
	}
	if err := checkIdentity(pod); err != nil {
		return pod, nil, err
	}
	if ephemeral := volumeContext[kubelets+"ephemeral"]; ephemeral != "true" {
		return pod, nil, fmt.Errorf("%sephemeral is %s, not \"true\": this driver is only for inline volumes, written in the pod's spec as "+
			"volumes: [{name: tls, csi: {driver: csi.step-ca.io, readOnly: true}}]", kubelets, quote(ephemeral))
	}
	user = maps.Clone(volumeContext)
	maps.DeleteFunc(user, func(key, _ string) bool { return strings.HasPrefix(key, kubelets) })
	return pod, user, nil
}

// objectPattern is what Kubernetes calls a DNS subdomain, whose parts may be
// longer than DNS has them.
var objectPattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$`)

// checkIdentity refuses what no API server gives: names are built out of it.
func checkIdentity(pod issuer.Pod) error {
	for _, field := range []struct {
		key, value string
		pattern    *regexp.Regexp
	}{
		{"pod.namespace", pod.Namespace, labelPattern},
		{"pod.name", pod.Name, objectPattern},
		{"pod.uid", pod.UID, labelPattern},
		{"serviceAccount.name", pod.ServiceAccount, objectPattern},
	} {
		if field.value == "" {
			return fmt.Errorf("%s%s is missing: the CSIDriver object needs podInfoOnMount: true", kubelets, field.key)
		}
		if len(field.value) > maxDNSName || !field.pattern.MatchString(field.value) {
			return fmt.Errorf("%s%s: %s is not a name that Kubernetes gives", kubelets, field.key, quote(field.value))
		}
	}
	return nil
}
