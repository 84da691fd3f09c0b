package attributes

import (
	"fmt"
	"maps"
	"strings"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
)

// kubelets is the prefix of the keys that the kubelet adds to a volume's context.
// The kubelet overwrites such keys of users, but only if the CSIDriver object has
// podInfoOnMount. See https://kubernetes-csi.github.io/docs/pod-info.html.
const kubelets = "csi.storage.k8s.io/"

// Identity splits a volume's context into the pod's identity, which the kubelet
// adds, and the user's attributes. It drops all other keys of the kubelet, such as
// tokens. If there is an error, pod has what could be read, for logs only.
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
		return pod, nil, fmt.Errorf("%sephemeral is %s, not \"true\": this driver supports only inline volumes, written in the pod's spec as "+
			"volumes: [{name: tls, csi: {driver: csi.step-ca.io, readOnly: true}}]", kubelets, names.Quote(ephemeral))
	}
	user = maps.Clone(volumeContext)
	maps.DeleteFunc(user, func(key, _ string) bool { return strings.HasPrefix(key, kubelets) })
	return pod, user, nil
}

// checkIdentity rejects an identity that no API server gives, because certificate
// names are built from it.
func checkIdentity(pod issuer.Pod) error {
	for _, field := range []struct {
		key, value string
		check      func(string) error
	}{
		{"pod.namespace", pod.Namespace, names.CheckLabel},
		{"pod.name", pod.Name, names.CheckSubdomain},
		{"pod.uid", pod.UID, names.CheckLabel},
		{"serviceAccount.name", pod.ServiceAccount, names.CheckSubdomain},
	} {
		if field.value == "" {
			return fmt.Errorf("%s%s is missing: the CSIDriver object needs podInfoOnMount: true", kubelets, field.key)
		}
		if err := field.check(field.value); err != nil {
			return fmt.Errorf("%s%s: %w", kubelets, field.key, err)
		}
	}
	return nil
}
