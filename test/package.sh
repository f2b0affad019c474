#!/bin/sh
# The package as a user gets it: packed, installed from its tarball into an empty folder, and run.
set -eu
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
program=
trap '[ -z "$program" ] || kill -KILL "$program" 2>/dev/null; rm -rf "$folder"' EXIT
tarball=$(npm pack --silent --pack-destination "$folder" --ignore-scripts | tail -n 1)
cd "$folder"
npm install --silent --no-audit --no-fund "./$tarball" >/dev/null
version=$(node_modules/.bin/transplice --version)
echo 'proxy_url = "socks5://192.0.2.1:1080"' >good.toml
echo 'proxy_urll = "socks5://192.0.2.1:1080"' >bad.toml
node_modules/.bin/transplice check good.toml
if node_modules/.bin/transplice check bad.toml 2>bad.out; then
	echo "a wrong file passed the check" >&2
	exit 1
fi
grep -q 'proxy_url' bad.out
# What an operator takes from the package: the manual, the units, the pages that the README links to.
for file in page/page.html page/page.css page/page.js monitoring/alerts.yml monitoring/grafana-dashboard.json man/transplice.1 man/transplice.toml.5 systemd/transplice.service systemd/transplice-egress.service \
	systemd/transplice.socket systemd/transplice-egress.socket systemd/transplice.conf \
	$(sed -n 's/.*](\(docs\/[a-z]*\.md\).*/\1/p' node_modules/transplice/README.md); do
	[ -s "node_modules/transplice/$file" ] || { echo "the package lacks $file" >&2; exit 1; }
done
# A link to the command is the predecessor of its name.
ln -s "$folder/node_modules/.bin/transplice" redsocks
./redsocks -v | grep -q '^redsocks/0.5 (transplice' || { echo "a link is not the program of its name" >&2; exit 1; }
# It must start, too: the worker's files and koffi's binary are in the package.
port=$(node -e 'const server = require("node:net").createServer().listen(0, () => server.close(console.log(server.address().port)))')
printf 'proxy_url = "socks5://192.0.2.1:1080"\nlisten = "127.0.0.1:%s"\n' "$port" >run.toml
: >run.out
node_modules/.bin/transplice -f run.toml 2>>run.out &
program=$!
# However slow the machine is: it is told to end when it is ready.
for _ in $(seq 600); do
	if grep -q 'transplice is ready' run.out || ! kill -0 "$program" 2>/dev/null; then break; fi
	sleep 0.1
done
kill -TERM "$program" 2>/dev/null || true
wait "$program" || { cat run.out; exit 1; }
program=
grep -q 'transplice is ready' run.out || { cat run.out; exit 1; }
echo "packed, installed and run: $version ($(du -h "$tarball" | cut -f1) packed)"
