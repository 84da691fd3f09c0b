#!/bin/sh
# Runs a command beside a cluster that ends with it.
set -eu
name=bench-$$
variables=$(bin/step-csi-cluster --name "$name" --owner $$ up)
trap 'bin/step-csi-cluster --name "$name" down' EXIT
eval "$variables"
export STEP_CSI_BENCH_KUBECONFIG="$KUBECONFIG"
"$@"
