#!/bin/sh
# Builds the images that the README and the examples use, and loads them into a cluster of
# step-csi-cluster, which reaches no registry. `make load` calls this as root.
# Environment variables, with their defaults:
#
#   CLUSTER     name of the cluster  (step-csi)
set -eu
cd "$(dirname "$0")/.."

version=$(sed -n 's/^appVersion: "\(.*\)"/\1/p' deploy/charts/step-csi/Chart.yaml)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

say() { echo "==> $*"; }

say "Images of step-csi, about 3 min the first time"
BASE=local IMAGE=ghcr.io/flexstack/step-csi:$version IMAGE_ARCHIVE=$work/step-csi.tar \
	RELOAD_IMAGE=ghcr.io/flexstack/step-csi-reload:$version RELOAD_IMAGE_ARCHIVE=$work/step-csi-reload.tar deploy/image/build.sh
say "Images of step-ca and of the examples, about 5 min the first time"
images=$(go run ./test/e2e/images)
say "Load the images"
bin/step-csi-cluster --name "${CLUSTER:-step-csi}" load "$images" "$work/step-csi.tar" "$work/step-csi-reload.tar"
