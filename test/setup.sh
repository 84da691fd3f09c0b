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
	# The servers of test/programs.
	need /usr/lib/postgresql postgresql
	need mariadbd mariadb-server-core
	need mariadb mariadb-client-core
	need redis-server redis-server
	need nginx nginx-light
	need haproxy haproxy
	need nats-server nats-server
	need /usr/lib/rabbitmq/bin/rabbitmq-server rabbitmq-server
	need apache2 apache2
	need mosquitto mosquitto
	need memcached memcached
	need etcd etcd-server
	need socat socat
	need curl curl
	need /usr/bin/python3 python3-minimal
	need node nodejs
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
# No service must run on the machine itself: invoke-rc.d(8) and deb-systemd-invoke(1) ask
# this program.
policy=/usr/sbin/policy-rc.d
begin=$(mktemp)
trap 'rm -f "$begin"' EXIT
if [ ! -e $policy ]; then
	trap 'rm -f "$begin" $policy' EXIT
	printf '#!/bin/sh\nexit 101\n' >$policy
	chmod 755 $policy
fi
case $missing in
*postgresql*) # whose packages would make a database for that service
	mkdir -p /etc/postgresql-common
	[ -e /etc/postgresql-common/createcluster.conf ] || echo create_main_cluster = false >/etc/postgresql-common/createcluster.conf
	;;
esac
# Without recommended packages, which the tests do not need.
apt-get install -qqy --no-install-recommends $missing >/dev/null
# The machine does not start the new services when it boots, either.
if [ -d /etc/systemd/system ]; then
	find /etc/systemd/system -path '*.wants/*' -type l -newer "$begin" -delete
fi
