//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// spiffeService is a service with its own service account. Its certificate's only name
// is the SPIFFE ID.
const spiffeService = `
apiVersion: v1
kind: ServiceAccount
metadata: {name: %[1]s, namespace: spiffe}
---
apiVersion: v1
kind: Service
metadata: {name: %[1]s, namespace: spiffe}
spec:
  selector: {app: %[1]s}
  ports: [{name: https, port: 8443}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s, namespace: spiffe}
spec:
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      serviceAccountName: %[1]s
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: 1
      securityContext: {runAsNonRoot: true, fsGroup: 65532, seccompProfile: {type: RuntimeDefault}}
      containers:
        - name: spiffe
          image: ghcr.io/flexstack/step-csi-spiffe:test
          imagePullPolicy: IfNotPresent
          env:
            - {name: PEER, value: "%[2]s.spiffe.svc:8443"}
            - {name: PEER_ID, value: "spiffe://cluster.local/ns/spiffe/sa/%[2]s"}
          securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
          volumeMounts: [{name: tls, mountPath: /etc/tls, readOnly: true}]
      volumes:
        - name: tls
          csi: {driver: %[3]s, readOnly: true, volumeAttributes: %[4]s}
`

// Two services authenticate each other by SPIFFE ID, also during rotations. They reject
// a third service of the same namespace and CA.
func spiffe(t *testing.T) {
	namespace(t, "spiffe", "restricted")
	start := func(name, peer string) {
		t.Helper()
		attributes, err := json.Marshal(short())
		must(t, err)
		must(t, applyText(fmt.Sprintf(spiffeService, name, peer, driverName, attributes)))
	}
	start("a", "b")
	start("b", "a")
	const id = "spiffe://cluster.local/ns/spiffe/sa/"
	waitLog(t, patience, "spiffe", "a", "ok: hello "+id+"a", "from "+id+"b")
	waitLog(t, patience, "spiffe", "b", "ok: hello "+id+"b", "from "+id+"a")
	before := failures(t, "spiffe", "a") + failures(t, "spiffe", "b")
	for _, service := range []string{"a", "b"} { // the serial number of its peer changes
		changes(t, patience, func() (string, error) {
			out, err := command("kubectl", "-n", "spiffe", "logs", "deployment/"+service, "--tail=1")
			_, theirs, _ := strings.Cut(out, "from ")
			return theirs, err
		})
	}
	if after := failures(t, "spiffe", "a") + failures(t, "spiffe", "b"); after != before {
		t.Errorf("calls failed during rotations:\n%s", kubectl(t, "-n", "spiffe", "logs", "--all-containers", "--prefix", "-l", "app in (a, b)", "--tail=-1"))
	}

	start("stranger", "a")
	waitLog(t, patience, "spiffe", "stranger", "error: ", "tls: bad certificate")
	waitLog(t, patience, "spiffe", "a", `unexpected ID "`+id+`stranger"`)
	if calls := since(t, "spiffe", "stranger", "ok: "); calls > 0 {
		t.Errorf("a accepted %d calls of the stranger", calls)
	}
	waitLog(t, patience, "spiffe", "b", "ok: hello "+id+"b", "from "+id+"a")
	if restarts := kubectl(t, "-n", "spiffe", "get", "pods", "-o", "jsonpath={.items[*].status.containerStatuses[*].restartCount}"); restarts != "0 0 0" {
		t.Errorf("restarts: %s", restarts)
	}
}
