#!/bin/sh
# What is for containers: the manifests by Kubernetes' own schemas, strictly; the Dockerfile by a linter,
# and its steps carried out, without Docker, in a file system laid over this host's.
set -eu
cd "$(dirname "$0")/.."
folder=$PWD/node_modules/.containers
mkdir -p "$folder"
if python3 -m venv --help >/dev/null 2>&1; then
	validate=$folder/python/bin/kubernetes-validate
	[ -x "$validate" ] || { python3 -m venv "$folder/python" && "$folder/python/bin/pip" install -q --no-compile --disable-pip-version-check kubernetes-validate==1.37.0; }
	"$validate" --strict kubernetes/*.yaml
	# Is it strict? A field that does not exist must be told.
	sed 's/hostNetwork/hostNetwrk/' kubernetes/node.yaml >"$folder/wrong.yaml"
	if "$validate" --strict "$folder/wrong.yaml" >"$folder/out" 2>&1; then
		echo 'a field that does not exist was accepted' >&2
		exit 1
	fi
	# What they configure must be valid, too.
	"$folder/python/bin/python" - kubernetes/*.yaml >"$folder/settings" <<-'END'
		import sys, yaml
		for name in sys.argv[1:]:
		    for document in yaml.safe_load_all(open(name)):
		        if document["kind"] == "ConfigMap":
		            print("file", document["data"]["transplice.toml"].encode().hex())
		        pod = document.get("spec", {}).get("template", {}).get("spec", {})
		        for container in pod.get("initContainers", []) + pod.get("containers", []):
		            pairs = [e["name"] + "=" + e.get("value", "socks5://192.0.2.1:1080") for e in container.get("env", [])]
		            if pairs: print("env", *pairs)
	END
	while read -r kind rest; do
		if [ "$kind" = file ]; then
			"$folder/python/bin/python" -c 'import sys; sys.stdout.buffer.write(bytes.fromhex(sys.argv[1]))' "$rest" >"$folder/check.toml"
			"${NODE:-node}" dist/src/main.js check "$folder/check.toml" >"$folder/out" 2>&1
		else
			env -i PATH="$PATH" $rest "${NODE:-node}" dist/src/main.js check >"$folder/out" 2>&1
		fi || { cat "$folder/out" >&2; exit 1; }
	done <"$folder/settings"
	[ -s "$folder/settings" ] || { echo 'the manifests configure nothing' >&2; exit 1; }
else
	echo 'skipped: the manifests are checked where python3 has venv (Debian: python3-venv)'
fi
[ -d "$folder/node_modules/dockerfile-utils" ] || npm install --silent --no-audit --no-fund --prefix "$folder" dockerfile-utils@0.16.3 >/dev/null
"${NODE:-node}" dist/test/containers.js "$folder"
