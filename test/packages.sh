#!/bin/sh
# Installs the Debian packages that a purpose needs (demo, test or bench), if any is missing and
# this user may install. What stays missing is said here; the tests that need it say so again.
set -u

demo='iproute2 util-linux nftables curl'
test="$demo iptables procps conntrack dnsmasq-base vsftpd microsocks dante-server squid tinyproxy nginx-light openssh-server openssh-client rsync ncat wget postgresql-client python3 redsocks unbound mandoc systemd prometheus chromium fonts-dejavu-core gcc libc6-dev"
bench="$demo iptables procps microsocks dante-server redsocks gcc libc6-dev strace"

case "${1:-}" in
demo) wanted=$demo ;;
test) wanted=$test ;;
bench) wanted=$bench ;;
*) echo "usage: $0 demo|test|bench" >&2; exit 2 ;;
esac

command -v dpkg-query >/dev/null 2>&1 || {
	echo "not a Debian system: $1 needs the programs of these packages: $wanted" >&2
	exit 0
}
missing=
for package in $wanted; do
	dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ]; then
	as_root=
elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
	as_root='sudo -n'
else
	echo "missing Debian packages:$missing" >&2
	echo "install them with: sudo apt-get install$missing" >&2
	exit 0
fi
echo "installing Debian packages:$missing"
# A daemon that a package brings must not start on this host.
policy=/usr/sbin/policy-rc.d
made_policy=
if [ ! -e $policy ]; then
	printf '#!/bin/sh\nexit 101\n' | $as_root tee $policy >/dev/null && $as_root chmod +x $policy && made_policy=1
fi
DEBIAN_FRONTEND=noninteractive
export DEBIAN_FRONTEND
log=$(mktemp)
{
	$as_root apt-get update -q &&
		$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $missing
} >"$log" 2>&1
status=$?
[ -z "$made_policy" ] || $as_root rm -f $policy
if [ $status -ne 0 ]; then
	tail -n 5 "$log" >&2
	echo "could not install:$missing" >&2
fi
rm -f "$log"
exit 0
