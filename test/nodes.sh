#!/bin/sh
# Runs the unit tests and the demo on each supported Node. The binaries come as npm packages
# (node-linux-ARCH), which bring them along.
set -eu
cd "$(dirname "$0")/.."
case $(uname -m) in
x86_64) arch=x64 ;;
aarch64) arch=arm64 ;;
*) echo "no Node packages are known for $(uname -m)" >&2; exit 1 ;;
esac
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for major in ${*:-20 22 24 26}; do
	npm install --silent --no-audit --no-fund --prefix "$folder/$major" "node-linux-$arch@$major" >/dev/null
	node="$folder/$major/node_modules/node-linux-$arch/bin/node"
	echo "== Node $("$node" --version)"
	"$node" dist/src/main.js --version
	"$node" --test dist/test/unit/*.test.js dist/test/*.test.js >"$folder/out" 2>&1 || { cat "$folder/out"; exit 1; }
	grep -E '^(#|ℹ) (pass|fail|skipped) ' "$folder/out"
	"$node" dist/test/demo.js >"$folder/out" 2>&1 || { cat "$folder/out"; exit 1; }
	grep 'GB in' "$folder/out"
done
