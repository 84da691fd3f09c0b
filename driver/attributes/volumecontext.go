package attributes

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
)

// kubeletPrefix is the prefix of the keys that the kubelet adds to a volume's context.
// The kubelet overwrites such keys of users, but only if the CSIDriver object has
// podInfoOnMount. See https://kubernetes-csi.github.io/docs/pod-info.html.
const kubeletPrefix = "csi.storage.k8s.io/"

// Identity splits a volume's context into the pod's identity, which the kubelet
// adds, and the user's attributes. It drops all other keys of the kubelet, such as
// tokens. If there is an error, pod has what could be read, for logs only.
func Identity(volumeContext map[string]string, node string) (pod issuer.Pod, user map[string]string, err error) {
	pod = issuer.Pod{
		Namespace:      volumeContext[kubeletPrefix+"pod.namespace"],
		Name:           volumeContext[kubeletPrefix+"pod.name"],
		UID:            volumeContext[kubeletPrefix+"pod.uid"],
		ServiceAccount: volumeContext[kubeletPrefix+"serviceAccount.name"],
		Node:           node,
	}
	// Certificate names are built from the identity, so an identity that no API
	// server gives is rejected.
	for _, field := range []struct {
		key, value string
		check      func(string) error
	}{
		{"pod.namespace", pod.Namespace, names.CheckLabel},
		{"pod.name", pod.Name, names.CheckSubdomain},
		{"pod.uid", pod.UID, names.CheckLabel},
		{"serviceAccount.name", pod.ServiceAccount, names.CheckSubdomain},
	} {
		if _, given := volumeContext[kubeletPrefix+field.key]; given && field.value == "" && field.key == "serviceAccount.name" {
			// The API server gives every pod a service account, except for the mirror pods of
			// static pods, which the kubelet runs without it.
			return pod, nil, fmt.Errorf("pod %s/%s has no service account, and so no token that proves its identity, because it is a static pod: "+
				"run it as a Deployment or DaemonSet, or give it a certificate from outside of Kubernetes, such as by \"step ca certificate\" on the node",
				pod.Namespace, pod.Name)
		}
		if field.value == "" {
			return pod, nil, fmt.Errorf("%s%s is missing: the CSIDriver object needs podInfoOnMount: true", kubeletPrefix, field.key)
		}
		if err := field.check(field.value); err != nil {
			return pod, nil, fmt.Errorf("%s%s: %w", kubeletPrefix, field.key, err)
		}
	}
	if ephemeral := volumeContext[kubeletPrefix+"ephemeral"]; ephemeral != "true" {
		return pod, nil, fmt.Errorf("%sephemeral is %s, not \"true\": this driver supports only inline volumes, written in the pod's spec as "+
			"volumes: [{name: tls, csi: {driver: csi.step-ca.io, readOnly: true}}]", kubeletPrefix, names.Quote(ephemeral))
	}
	user = maps.Clone(volumeContext)
	maps.DeleteFunc(user, func(key, _ string) bool { return strings.HasPrefix(key, kubeletPrefix) })
	return pod, user, nil
}

// VolumeContext returns the context that the kubelet makes for a volume of the pod with the
// user's attributes: what Identity splits. User keys of the kubelet are overwritten.
func VolumeContext(pod issuer.Pod, user map[string]string) map[string]string {
	made := maps.Clone(user)
	if made == nil {
		made = map[string]string{}
	}
	made[kubeletPrefix+"pod.namespace"] = pod.Namespace
	made[kubeletPrefix+"pod.name"] = pod.Name
	made[kubeletPrefix+"pod.uid"] = pod.UID
	made[kubeletPrefix+"serviceAccount.name"] = pod.ServiceAccount
	made[kubeletPrefix+"ephemeral"] = "true"
	return made
}

// tokensKey holds the pod's service-account tokens, by audience.
// See https://kubernetes-csi.github.io/docs/token-requests.html.
const tokensKey = kubeletPrefix + "serviceAccount.tokens"

// Token returns the pod's service-account token for the audience, or the zero
// value if there is none. The kubelet passes tokens in the secrets of a request,
// before Kubernetes 1.35 in the volume's context. If the secrets have tokens,
// those in the context are ignored: a user may have written them.
func Token(secrets, volumeContext map[string]string, audience string) (issuer.Token, error) {
	text, given := secrets[tokensKey]
	if !given {
		text = volumeContext[tokensKey]
	}
	if text == "" {
		return issuer.Token{}, nil
	}
	var tokens map[string]struct {
		Token               string    `json:"token"`
		ExpirationTimestamp time.Time `json:"expirationTimestamp"`
	}
	if err := json.Unmarshal([]byte(text), &tokens); err != nil {
		// The error of the JSON parser is left out: it may quote a token.
		return issuer.Token{}, errors.New(tokensKey + " is not the JSON that the kubelet writes")
	}
	token := tokens[audience]
	return issuer.NewToken(token.Token, token.ExpirationTimestamp), nil
}
