# Everything a fresh machine with Node >= 20 and make needs: `make demo` and `make test`.
# Each target does its own set-up. Debian packages are installed only when they are missing, and
# only when this user may (root, or sudo without a password).

NODE ?= node
PATH := $(CURDIR)/node_modules/.bin:$(PATH)
SOURCES := $(shell find src native-bindings bench test -name '*.ts' 2>/dev/null)
UNIT = dist/test/unit/*.test.js dist/test/*.test.js
NET = dist/test/net/*.test.js


.PHONY: help documents picture readme demo test test-unit test-net test-package test-containers test-nodes build lint bench profile clean
.DEFAULT_GOAL := help

help: ## show this list
	@printf 'make TARGET, where TARGET is one of:\n\n'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: build ## show the main job working, in a private network namespace
	@sh test/packages.sh demo
	@$(NODE) dist/test/demo.js

test: build lint ## everything: lint, unit, simulated kernel, network namespaces, a short bench
	@sh test/packages.sh test
	@$(MAKE) --no-print-directory test-unit test-package test-containers test-net
	$(NODE) dist/bench/run.js --quick

test-unit: build ## protocol machines, engine on the simulated kernel, control plane
	$(NODE) --test $(UNIT)

test-net: build ## the real thing: rules, peers and programs in network namespaces
	@sh test/packages.sh test
	$(NODE) --test --test-concurrency=1 $(NET)

test-package: build ## the npm package: packed, installed from its tarball, and run
	@sh test/package.sh

test-containers: build ## the Dockerfile, linted and carried out without Docker; the Kubernetes manifests by their schemas
	@NODE=$(NODE) sh test/containers.sh

test-nodes: build ## unit tests and a run of the program on Node 20, 22, 24 and 26
	@sh test/nodes.sh

build: dist/.built ## compile TypeScript to dist/

dist/.built: node_modules/.installed tsconfig.json $(SOURCES)
	tsc -p tsconfig.json
	@chmod +x dist/src/main.js
	@touch $@

node_modules/.installed: package.json package-lock.json
	@echo 'installing npm packages'
	@npm ci --no-audit --no-fund --loglevel=error
	@touch $@

lint: node_modules/.installed ## biome, and the compiler's strictest settings
	biome lint --error-on-warnings
	tsc -p tsconfig.json --noEmit

bench: build ## measure relay and egress against C, node:net and the peers; write bench/RESULTS.md
	@sh test/packages.sh bench
	$(NODE) dist/bench/run.js --write
	$(NODE) dist/bench/micro.js --write

profile: build ## a flame graph of the data plane under load, in profile/
	@sh test/packages.sh bench
	$(NODE) dist/bench/profile.js

picture: build ## draw docs/page.png, the picture of the status page, anew: five minutes of traffic
	@sh test/packages.sh test
	$(NODE) --test dist/test/net/picture.js

documents: build ## write the generated parts of README.md, docs/ and man/ from their sources
	$(NODE) dist/test/documents.js

readme: documents

clean: ## remove what was built and measured
	rm -rf dist node_modules profile bench/bin *.tgz
