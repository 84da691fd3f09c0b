package attributes

import (
	"fmt"
	"strings"

	"github.com/flexstack/step-csi/issuer"
)

// kubelets is how the keys begin that the kubelet adds to a volume's context.
// Where a user has written one, the kubelet overwrites it. See
// https://kubernetes-csi.github.io/docs/pod-info.html.
const kubelets = "csi.storage.k8s.io/"

// Identity takes the pod's identity, which the kubelet adds, out of a volume's
// context, and returns the user's attributes. Whatever else is the kubelet's,
// such as tokens, stays behind.
func Identity(volumeContext map[string]string, node string) (pod issuer.Pod, user map[string]string, err error) {
	if ephemeral := volumeContext[kubelets+"ephemeral"]; ephemeral != "true" {
		return pod, nil, fmt.Errorf("%sephemeral is %s, not \"true\": this driver is only for inline volumes, written in the pod's spec as "+
			"volumes: [{name: tls, csi: {driver: csi.step-ca.io, readOnly: true}}]", kubelets, quote(ephemeral))
	}
	pod.Node = node
	for _, field := range []struct {
		key   string
		value *string
	}{
		{"pod.namespace", &pod.Namespace},
		{"pod.name", &pod.Name},
		{"pod.uid", &pod.UID},
		{"serviceAccount.name", &pod.ServiceAccount},
	} {
		if *field.value = volumeContext[kubelets+field.key]; *field.value == "" {
			return pod, nil, fmt.Errorf("%s%s is missing: the CSIDriver object needs podInfoOnMount: true", kubelets, field.key)
		}
	}
	user = map[string]string{}
	for key, value := range volumeContext {
		if !strings.HasPrefix(key, kubelets) {
			user[key] = value
		}
	}
	return pod, user, nil
}
