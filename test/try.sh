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

say() { echo "==> $*"; }
cluster() { bin/step-csi-cluster --name "$CLUSTER" ${KUBERNETES:+--kubernetes "$KUBERNETES"} "$@"; }

say "Cluster"
variables=$(cluster ${OWNER:+--owner "$OWNER"} up)
eval "$variables"

CLUSTER=$CLUSTER test/load.sh

# In a directory of its own: the commands of the README write files.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

# put creates the object that its arguments describe, or replaces it.
put() { kubectl -n step-csi create "$@" --dry-run=client -o yaml | kubectl apply -f -; }

say "step-ca"
kubectl apply -k deploy/step-ca/trial
if ! kubectl -n flexstack-identity get secret step-ca-secrets >/dev/null 2>&1; then
	openssl rand -base64 -out "$work/password" 32
	kubectl -n flexstack-identity create secret generic step-ca-secrets --from-file=provisioner-password="$work/password"
fi
kubectl -n flexstack-identity rollout status deployment/step-ca --timeout=300s
kubectl -n flexstack-identity exec deployment/step-ca -- cat /home/step/certs/root_ca.crt >"$work/root_ca.crt"
kubectl -n flexstack-identity exec deployment/step-ca -- cat /run/secrets/step-ca/provisioner-password >"$work/password"

say "step-csi"
kubectl create namespace step-csi --dry-run=client -o yaml | kubectl apply -f -
kubectl label --overwrite namespace step-csi pod-security.kubernetes.io/enforce=privileged
put configmap step-csi-ca-root --from-file="$work/root_ca.crt"
put secret generic step-csi-provisioner --from-file="$work/password"
# The name of the image stays the same when its content changes. The annotation restarts
# the pods then.
digest=$(cluster exec ctr --namespace k8s.io images ls name~=ghcr.io/flexstack/step-csi: | grep -o 'sha256:[0-9a-f]*' | sort | sha256sum | cut -c 1-16)
helm upgrade --install step-csi deploy/charts/step-csi -n step-csi -f deploy/examples/values/guide.yaml \
	--set-string "podAnnotations.images=$digest,ra.podAnnotations.images=$digest" --wait --timeout=300s >/dev/null

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
kubectl wait --for=condition=Ready pod/try-rotation --timeout=300s

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

    kubectl -n step-csi logs daemonset/step-csi

More pods: the README, from "4. A pod" on, and deploy/examples. Remove all of it:

    make cluster-down$([ "$CLUSTER" = step-csi ] || echo " CLUSTER=$CLUSTER")
EOF
