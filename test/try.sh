#!/bin/sh
# Runs the README's quick start on this machine: a cluster, the images, step-ca, the chart
# and a pod. A second run updates what has changed. `make try` calls this as root.
# Environment variables, with their defaults:
#
#   CLUSTER     name of the cluster                        (step-csi)
#   KUBERNETES  version of Kubernetes, such as 1.34        (the newest)
#   OWNER       remove the cluster when this process ends  (none)
set -eu
cd "$(dirname "$0")/.."

CLUSTER=${CLUSTER:-step-csi}
namespace=flexstack-identity

say() { echo "==> $*"; }
cluster() { bin/step-csi-cluster --name "$CLUSTER" ${KUBERNETES:+--kubernetes "$KUBERNETES"} "$@"; }

say "Cluster"
variables=$(cluster ${OWNER:+--owner "$OWNER"} up)
eval "$variables"

CLUSTER=$CLUSTER test/load.sh

say "step-ca"
kubectl apply -f deploy/step-ca/namespace.yaml
kubectl -n $namespace get secret step-ca-secrets >/dev/null 2>&1 ||
	kubectl -n $namespace create secret generic step-ca-secrets --from-literal=provisioner-password="$(openssl rand -base64 32)"
kubectl apply -k deploy/step-ca
kubectl -n $namespace rollout status deployment/step-ca --timeout=180s
root=$(kubectl -n $namespace exec deployment/step-ca -- cat /home/step/certs/root_ca.crt | base64 | tr -d '\n')
kubectl -n $namespace patch secret step-ca-secrets --patch "{\"data\":{\"root_ca.crt\":\"$root\"}}"

say "step-csi"
# The name of the image stays the same when its content changes. The annotation restarts
# the pods then.
digest=$(cluster exec ctr --namespace k8s.io images ls name~=ghcr.io/flexstack/step-csi: | grep -o 'sha256:[0-9a-f]*' | sort | sha256sum | cut -c 1-16)
helm upgrade --install step-csi deploy/charts/step-csi -n $namespace -f deploy/examples/values/guide.yaml \
	--set-string "podAnnotations.images=$digest,ra.podAnnotations.images=$digest" --wait --timeout=180s >/dev/null

say "A pod"
kubectl apply -f - <<EOF
apiVersion: v1
kind: Pod
metadata: {name: try-rotation}
spec:
  containers:
    - name: app
      image: docker.io/library/busybox:1.37
      command: [sleep, infinity]
      volumeMounts:
        - {name: tls, mountPath: /etc/tls, readOnly: true}
  volumes:
    - name: tls
      csi:
        driver: csi.step-ca.io
        readOnly: true
        volumeAttributes:
          service-names: my-service
          duration: 5m
          renew-before: 4m
EOF
kubectl wait --for=condition=Ready pod/try-rotation --timeout=120s

name=
[ "$CLUSTER" = step-csi ] || name=" --name $CLUSTER"
cat <<EOF

The pod try-rotation has a certificate from step-ca, and gets a new one every minute. Next:

For kubectl and helm in this shell:

    eval "\$(bin/step-csi-cluster$name env)"

The certificate:

    kubectl exec try-rotation -- cat /etc/tls/tls.crt | openssl x509 -noout -text

Watch the rotation, until Ctrl-C:

    while sleep 2; do kubectl exec try-rotation -- cat /etc/tls/tls.crt | openssl x509 -noout -serial -enddate; done

What step-csi does:

    kubectl -n $namespace logs daemonset/step-csi

More pods: the README, from "3. A pod" on, and deploy/examples. Remove all of it:

    make cluster-down$([ "$CLUSTER" = step-csi ] || echo " CLUSTER=$CLUSTER")
EOF
