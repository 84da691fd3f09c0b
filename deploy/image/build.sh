#!/bin/sh
# Builds the image of step-csi with docker, podman or buildah, whichever works
# here. From the environment:
#
#   IMAGE              the image's name                 (ghcr.io/flexstack/step-csi:dev)
#   VERSION            what `step-csi version` says     (git describe)
#   REVISION           the commit, for a label          (git rev-parse)
#   SOURCE_DATE_EPOCH  the time in the image            (the commit's)
#   PLATFORM           such as linux/arm64              (this machine's)
#   BASE               the image to build in; "local" takes this machine's own Go
#                      and needs no registry, but go, buildah and busybox-static
#   BUILDER            docker, podman or buildah        (the first that works)
#   GOPROXY            where Go modules come from       (Go's own)
#   IMAGE_ARCHIVE      where to write the image as a docker archive, if anywhere
set -eu
cd "$(dirname "$0")/../.."

IMAGE=${IMAGE:-ghcr.io/flexstack/step-csi:dev}
BASE=${BASE:-docker.io/library/golang:1.26}
VERSION=${VERSION:-$(git describe --tags --always --dirty 2>/dev/null || echo devel)}
REVISION=${REVISION:-$(git rev-parse HEAD 2>/dev/null || echo unknown)}
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
unset SOURCE_DATE_EPOCH # later versions of podman and buildah take it for a flag beside --timestamp

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
	[ "$BASE" = local ] && fail "BASE=local takes buildah; on Debian or Ubuntu: apt-get install buildah busybox-static"
	command -v docker >/dev/null && fail "docker is here but its engine does not answer (docker info says why); start it, or install podman or buildah"
	fail "it takes docker, podman or buildah; on Debian or Ubuntu: apt-get install buildah"
}

BUILDER=${BUILDER:-$(find_builder)}
works "$BUILDER" || fail "BUILDER=$BUILDER does not work here; it is one of docker, podman and buildah"
[ "$BASE" != local ] || [ "$BUILDER" = buildah ] || fail "BASE=local takes BUILDER=buildah, not $BUILDER"

# build passes what all builders have in common.
build() {
	"$@" ${PLATFORM:+--platform "$PLATFORM"} ${GOPROXY:+--build-arg GOPROXY="$GOPROXY"} \
		--build-arg BASE="$BASE" --build-arg VERSION="$VERSION" --build-arg REVISION="$REVISION" --tag "$IMAGE" --file Dockerfile .
}

# machine is this one's platform: podman and buildah may not know BUILDPLATFORM
# where another is built for.
machine() {
	case $(uname -m) in
	x86_64) echo linux/amd64 ;;
	aarch64) echo linux/arm64 ;;
	*) echo "linux/$(uname -m)" ;;
	esac
}

# local_base makes an image of a shell and certificates. Go itself and its caches
# are mounted: to copy them takes longer than to build.
local_base() {
	buildah rm --all >/dev/null # what an interrupted build has left
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
	build env SOURCE_DATE_EPOCH="$epoch" docker build --build-arg SOURCE_DATE_EPOCH="$epoch"
	[ -z "${IMAGE_ARCHIVE:-}" ] || docker save --output "$IMAGE_ARCHIVE" "$IMAGE"
	;;
podman)
	build podman build --timestamp "$epoch" --build-arg BUILDPLATFORM="$(machine)"
	[ -z "${IMAGE_ARCHIVE:-}" ] || { rm -f "$IMAGE_ARCHIVE" && podman save --output "$IMAGE_ARCHIVE" "$IMAGE"; }
	;;
buildah)
	set --
	if [ "$BASE" = local ]; then
		command -v go >/dev/null || fail "BASE=local takes this machine's Go, and there is none; install it from https://go.dev/dl/"
		[ -x /bin/busybox ] || fail "BASE=local takes a static busybox; on Debian or Ubuntu: apt-get install busybox-static"
		# Works inside a container, too, and leaves the machine's own storage alone.
		store=${XDG_CACHE_HOME:-$HOME/.cache}/step-csi/buildah
		mkdir -p "$store"
		exec 9>"$store/lock"
		flock 9
		export BUILDAH_ISOLATION=chroot
		# By flag: beside --root, buildah 1.28 ignores STORAGE_DRIVER.
		buildah() { command buildah --root "$store/root" --runroot "$store/run" --storage-driver vfs "$@"; }
		local_base
		BASE=localhost/step-csi-build:local
		GOPROXY=$(go env GOPROXY)
		set -- --pull-never \
			--volume "$(go env GOROOT):/usr/local/go:ro" \
			--volume "$(go env GOMODCACHE):/go/pkg/mod" --volume "$(go env GOCACHE):/root/.cache/go-build"
	fi
	[ -n "${PLATFORM:-}" ] || PLATFORM=$(machine) # else buildah 1.28 has no TARGETARCH
	build buildah build --timestamp "$epoch" --identity-label=false --build-arg BUILDPLATFORM="$(machine)" "$@"
	[ -z "${store:-}" ] || buildah rmi --prune >/dev/null # earlier builds of the same name
	if [ -n "${IMAGE_ARCHIVE:-}" ]; then
		rm -f "$IMAGE_ARCHIVE"
		buildah push --quiet "$IMAGE" "docker-archive:$IMAGE_ARCHIVE:$IMAGE"
	fi
	;;
esac
