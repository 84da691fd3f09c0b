#!/bin/sh
# Builds the images of step-csi and step-csi-reload with docker, podman or buildah.
# Environment variables, with their defaults:
#
#   IMAGE                 name of the image          (ghcr.io/flexstack/step-csi:dev)
#   RELOAD_IMAGE          name of the reload image   (ghcr.io/flexstack/step-csi-reload:dev)
#   VERSION               version of the programs    (git describe)
#   REVISION              commit, for a label        (git rev-parse)
#   SOURCE_DATE_EPOCH     time in the images         (the commit's)
#   PLATFORM              such as linux/arm64        (this machine's)
#   BASE                  image to build in. "local" uses this machine's Go and no
#                         registry; it needs go, buildah and busybox-static
#   BUILDER               docker, podman or buildah  (the first that works)
#   GOPROXY               source of Go modules       (Go's own)
#   IMAGE_ARCHIVE         file to save the image to, as a docker archive (none)
#   RELOAD_IMAGE_ARCHIVE  file to save the reload image to (none)
set -eu
cd "$(dirname "$0")/../.."

IMAGE=${IMAGE:-ghcr.io/flexstack/step-csi:dev}
RELOAD_IMAGE=${RELOAD_IMAGE:-ghcr.io/flexstack/step-csi-reload:dev}
BASE=${BASE:-docker.io/library/golang:1.26}
VERSION=${VERSION:-$(git describe --tags --always --dirty 2>/dev/null || echo devel)}
REVISION=${REVISION:-$(git rev-parse HEAD 2>/dev/null || echo unknown)}
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
unset SOURCE_DATE_EPOCH # newer podman and buildah reject it together with --timestamp

fail() {
	echo "make image: $*" >&2
	exit 1
}

works() {
	case $1 in
	docker) docker info >/dev/null 2>&1 ;;
	podman | buildah) command -v "$1" >/dev/null ;;
	*) false ;;
	esac
}

find_builder() {
	[ "$BASE" = local ] && candidates=buildah || candidates="docker podman buildah"
	for b in $candidates; do
		works $b && { echo $b; return; }
	done
	[ "$BASE" = local ] && fail "BASE=local needs buildah; on Debian or Ubuntu: apt-get install buildah busybox-static"
	command -v docker >/dev/null && fail "docker is installed, but its engine does not respond (see docker info); start it, or install podman or buildah"
	fail "found neither docker, podman nor buildah; on Debian or Ubuntu: apt-get install buildah"
}

BUILDER=${BUILDER:-$(find_builder)}
works "$BUILDER" || fail "BUILDER=$BUILDER does not work here; use docker, podman or buildah"
[ "$BASE" != local ] || [ "$BUILDER" = buildah ] || fail "BASE=local needs BUILDER=buildah, not $BUILDER"

# build_images runs the builder's build command for both images, with the flags that
# all builders share.
build_images() {
	build_image reload "$RELOAD_IMAGE" "$@"
	build_image step-csi "$IMAGE" "$@"
}

build_image() {
	target=$1 image=$2
	shift 2
	"$@" --target "$target" ${PLATFORM:+--platform "$PLATFORM"} ${GOPROXY:+--build-arg GOPROXY="$GOPROXY"} \
		--build-arg BASE="$BASE" --build-arg VERSION="$VERSION" --build-arg REVISION="$REVISION" --tag "$image" --file Dockerfile .
}

# save_images calls save IMAGE ARCHIVE for each requested archive.
save_images() {
	[ -z "${IMAGE_ARCHIVE:-}" ] || save "$IMAGE" "$IMAGE_ARCHIVE"
	[ -z "${RELOAD_IMAGE_ARCHIVE:-}" ] || save "$RELOAD_IMAGE" "$RELOAD_IMAGE_ARCHIVE"
}

# machine prints this machine's platform. podman and buildah may not set
# BUILDPLATFORM when they build for another platform.
machine() {
	case $(uname -m) in
	x86_64) echo linux/amd64 ;;
	aarch64) echo linux/arm64 ;;
	*) echo "linux/$(uname -m)" ;;
	esac
}

# local_base makes an image with a shell and certificates. Go and its caches are
# mounted, because copying them takes longer than the build.
local_base() {
	buildah rm --all >/dev/null # left by an interrupted build
	container=$(buildah from scratch)
	root=$(buildah mount "$container")
	mkdir -p "$root/bin" "$root/tmp" "$root/etc/ssl" "$root/root" "$root/usr/local/go"
	chmod 1777 "$root/tmp"
	cp /bin/busybox "$root/bin/busybox"
	for name in sh mkdir touch; do ln "$root/bin/busybox" "$root/bin/$name"; done
	cp -RL /etc/ssl/certs "$root/etc/ssl/certs"
	buildah umount "$container" >/dev/null
	buildah config --env PATH=/usr/local/go/bin:/bin --env HOME=/root --env GOPATH=/go --env GOTOOLCHAIN=local \
		--env GOSUMDB="$(go env GOSUMDB)" "$container"
	buildah commit --quiet --rm "$container" localhost/step-csi-build:local >/dev/null
}

case $BUILDER in
docker)
	build_images env SOURCE_DATE_EPOCH="$epoch" docker build --build-arg SOURCE_DATE_EPOCH="$epoch"
	save() { docker save --output "$2" "$1"; }
	;;
podman)
	build_images podman build --timestamp "$epoch" --build-arg BUILDPLATFORM="$(machine)"
	save() { rm -f "$2" && podman save --output "$2" "$1"; }
	;;
buildah)
	set -- --layers # compile once for both images; podman and docker do so by default
	if [ "$BASE" = local ]; then
		command -v go >/dev/null || fail "BASE=local uses this machine's Go, but Go is not installed; see https://go.dev/dl/"
		[ -x /bin/busybox ] || fail "BASE=local needs a static busybox; on Debian or Ubuntu: apt-get install busybox-static"
		# This storage also works inside a container, and keeps the machine's own unchanged.
		store=${XDG_CACHE_HOME:-$HOME/.cache}/step-csi/buildah
		mkdir -p "$store"
		exec 9>"$store/lock"
		flock 9
		export BUILDAH_ISOLATION=chroot
		# With --root, buildah 1.28 ignores STORAGE_DRIVER, so the driver is a flag.
		buildah() { command buildah --root "$store/root" --runroot "$store/run" --storage-driver vfs "$@"; }
		local_base
		BASE=localhost/step-csi-build:local
		GOPROXY=$(go env GOPROXY)
		set -- --pull-never \
			--volume "$(go env GOROOT):/usr/local/go:ro" \
			--volume "$(go env GOMODCACHE):/go/pkg/mod" --volume "$(go env GOCACHE):/root/.cache/go-build"
	fi
	[ -n "${PLATFORM:-}" ] || PLATFORM=$(machine) # otherwise buildah 1.28 does not set TARGETARCH
	build_images buildah build --timestamp "$epoch" --identity-label=false --build-arg BUILDPLATFORM="$(machine)" "$@"
	[ -z "${store:-}" ] || buildah rmi --prune >/dev/null # earlier builds with the same names
	save() { rm -f "$2" && buildah push --quiet "$1" "docker-archive:$2:$1"; }
	;;
esac
save_images
