#!/bin/sh
# Installs missing packages for the target of make that is the argument, if the machine
# has apt-get.
set -eu
missing=
need() { # program package
	command -v "$1" >/dev/null || [ -e "$1" ] || missing="$missing $2"
}
need openssl openssl # checks certificates independently
case $1 in
test)
	need certtool gnutls-bin # checks chains as programs with GnuTLS do
	need promtool prometheus # promtool tests the alerts
	need javac openjdk-17-jdk-headless # reads key stores; also has keytool
	;;
e2e | load | try)
	need buildah buildah
	need /bin/busybox busybox-static
	need gcc gcc # builds runc
	need /usr/include/stdio.h libc6-dev
	need /usr/include/seccomp.h libseccomp-dev
	need pkg-config pkg-config
	need /usr/lib/cni/ptp containernetworking-plugins
	need iptables iptables
	need mmdebstrap mmdebstrap
	need qemu-aarch64-static qemu-user-static # runs the programs of the image for arm64
	;;
esac
[ -z "$missing" ] && exit 0
command -v apt-get >/dev/null || { echo "make $1: install$missing" >&2; exit 1; }
echo "Installing$missing"
export DEBIAN_FRONTEND=noninteractive
apt-get update -q >/dev/null
# Without recommended packages: no service must run on the machine itself.
apt-get install -qqy --no-install-recommends $missing >/dev/null
