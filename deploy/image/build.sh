#!/bin/sh
# Builds the image of step-csi with docker, podman or buildah, whichever works
# here. From the environment:
#
#   IMAGE          the image's name                     (ghcr.io/flexstack/step-csi:dev)
#   VERSION        what `step-csi version` says         (git describe)
#   BASE           the image to build in; "local" takes this machine's own Go and
#                  needs no registry, but buildah and busybox-static
#   BUILDER        docker, podman or buildah            (the first that works)
#   IMAGE_ARCHIVE  where to write the image as a docker archive, if anywhere
set -eu
cd "$(dirname "$0")/../.."

IMAGE=${IMAGE:-ghcr.io/flexstack/step-csi:dev}
BASE=${BASE:-docker.io/library/golang:1.26}
VERSION=${VERSION:-$(git describe --tags --always --dirty 2>/dev/null || echo devel)}
REVISION=$(git rev-parse HEAD 2>/dev/null || echo unknown)
# Of the commit, so that the same commit gives the same image.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
export SOURCE_DATE_EPOCH

works() {
	case $1 in
	docker) docker info >/dev/null 2>&1 ;;
	*) command -v "$1" >/dev/null ;;
	esac
}

find_builder() {
	for b in docker podman buildah; do
		[ "$BASE" = local ] && [ $b != buildah ] && continue
		works $b && { echo $b; return; }
	done
	[ "$BASE" = local ] && tools="buildah and busybox-static" || tools="docker, podman or buildah"
	echo "make image: it takes $tools; on Debian or Ubuntu: apt-get install buildah busybox-static" >&2
	exit 1
}

BUILDER=${BUILDER:-$(find_builder)}
works "$BUILDER" || { echo "make image: $BUILDER does not work here" >&2; exit 1; }

# build passes what all builders have in common.
build() {
	"$@" --build-arg BASE="$BASE" --build-arg VERSION="$VERSION" --build-arg REVISION="$REVISION" --tag "$IMAGE" --file Dockerfile .
}

# local_base makes an image of a shell and certificates. Go itself and its caches
# are mounted: to copy them takes longer than to build.
local_base() {
	[ -x /bin/busybox ] || { echo "make image: BASE=local needs a static busybox; on Debian or Ubuntu: apt-get install busybox-static" >&2; exit 1; }
	container=$(buildah from scratch)
	root=$(buildah mount "$container")
	mkdir -p "$root/bin" "$root/tmp" "$root/etc/ssl" "$root/root" "$root/usr/local/go"
	chmod 1777 "$root/tmp"
	cp /bin/busybox "$root/bin/busybox"
	for name in sh mkdir; do ln "$root/bin/busybox" "$root/bin/$name"; done
	cp -RL /etc/ssl/certs "$root/etc/ssl/certs"
	buildah umount "$container" >/dev/null
	buildah config --env PATH=/usr/local/go/bin:/bin --env HOME=/root --env GOPATH=/go --env GOTOOLCHAIN=local \
		--env GOPROXY="$(go env GOPROXY)" --env GOSUMDB="$(go env GOSUMDB)" "$container"
	buildah commit --quiet --rm "$container" localhost/step-csi-build:local >/dev/null
}

case $BUILDER in
docker)
	build docker build
	[ -z "${IMAGE_ARCHIVE:-}" ] || docker save --output "$IMAGE_ARCHIVE" "$IMAGE"
	;;
podman)
	build podman build --timestamp "$SOURCE_DATE_EPOCH"
	[ -z "${IMAGE_ARCHIVE:-}" ] || podman save --output "$IMAGE_ARCHIVE" "$IMAGE"
	;;
buildah)
	if [ "$BASE" = local ]; then
		# Works inside a container, too, and leaves the machine's own storage alone.
		store=${XDG_CACHE_HOME:-$HOME/.cache}/step-csi/buildah
		mkdir -p "$store"
		exec 9>"$store/lock"
		flock 9
		export STORAGE_DRIVER=vfs BUILDAH_ISOLATION=chroot
		buildah() { command buildah --root "$store/root" --runroot "$store/run" "$@"; }
		local_base
		BASE=localhost/step-csi-build:local
		set -- --pull-never --build-arg TARGETOS=linux --build-arg TARGETARCH="$(go env GOARCH)" \
			--volume "$(go env GOROOT):/usr/local/go:ro" \
			--volume "$(go env GOMODCACHE):/go/pkg/mod" --volume "$(go env GOCACHE):/root/.cache/go-build"
	fi
	build buildah build --timestamp "$SOURCE_DATE_EPOCH" "$@"
	buildah rmi --prune >/dev/null # earlier builds of the same name
	if [ -n "${IMAGE_ARCHIVE:-}" ]; then
		rm -f "$IMAGE_ARCHIVE"
		buildah push --quiet "$IMAGE" "docker-archive:$IMAGE_ARCHIVE:$IMAGE"
	fi
	;;
esac
