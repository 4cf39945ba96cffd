# Everything that one does with this project. `make serve` and `make test` set up what they need.
#
#   PYTHON=python3.12           the interpreter that .venv is made with
#   TORCH_INDEX_URL=URL         where torch comes from; on Linux x86-64 the default brings CUDA
#                               (several GB), https://download.pytorch.org/whl/cpu does not
#   ARGS="my.yaml --grpc-port 0"  arguments of `make serve` and `make bench`

PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH_INDEX_URL ?=
ARGS ?=
QUICK ?=
BASE ?=
DOCKER ?= docker
COVERAGE_FLOOR := 93
# A file's tests share what is slow to make; threads of two workers would only wait for each other.
WORKERS := OMP_NUM_THREADS=1
BY_WORKERS := -n 2 --dist loadfile

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OPTIMUM_VENV := .venv-optimum
TRITON_VENV := .venv-triton
TRITON_STAMP := $(TRITON_VENV)/.stamp
RAY_VENV := .venv-ray
RAY_STAMP := $(RAY_VENV)/.stamp
VALIDATORS_VENV := .venv-validators
VALIDATORS_STAMP := $(VALIDATORS_VENV)/.stamp
BUILDAH := build/debian/buildah
NODE_MODULES := tests/system/javascript/node_modules
NODE_STAMP := $(NODE_MODULES)/.stamp
PROMETHEUS := build/debian/usr/bin/prometheus
CHROMIUM := build/debian/chromium
TORCH := $(shell grep '^torch==' constraints.txt)

export PYTHONUNBUFFERED := 1

.PHONY: help setup serve test check fmt lint test-slow test-system test-optimum \
	deploy-test image-test ray-test wheel sbom bench bench-methods bench-peers \
	bench-overload bench-ray protos demo-model constraints config-reference image clean

help: ## Show what there is.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

setup: $(STAMP) ## Install into .venv; does nothing when nothing changed.

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-deps $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL)) "$(TORCH)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[optimizer,search,dev]'
	@touch $@

serve: $(STAMP) ## Start a server, by default with the embedded demo model.
	$(BIN)/inference-unlimited serve $(ARGS)

test: $(STAMP) ## Run the tests, by two workers.
	$(WORKERS) $(BIN)/python -m pytest $(BY_WORKERS)

check: lint ## Lint, types, arrows between packages, tests with a coverage floor.
	$(WORKERS) $(BIN)/python -m pytest $(BY_WORKERS) --cov --cov-report=term:skip-covered --cov-fail-under=$(COVERAGE_FLOOR)

lint: $(STAMP) ## Lint, format, types and the arrows between packages; no tests.
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: $(STAMP) ## Format the code and fix what can be fixed.
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

test-slow: $(STAMP) ## Run the heavier proofs.
	$(BIN)/python -m pytest -m slow

test-system: $(STAMP) $(PROMETHEUS) $(CHROMIUM) $(TRITON_STAMP) $(NODE_STAMP) ## Test with a real Prometheus, a browser, Triton's client and one in JavaScript; QUICK=1 for the quick part.
	PATH="$(abspath $(dir $(PROMETHEUS))):$$PATH" TRITON_PYTHON=$(abspath $(TRITON_VENV))/bin/python \
		$(BIN)/python -m pytest tests/system -m '$(if $(QUICK),system and not slow,system)'

# Unpacked, not installed: nothing is started as a service, and root is needed only for fresh lists.
$(PROMETHEUS):
	mkdir -p build/debian
	cd build/debian && { apt-get download prometheus || \
		{ $(if $(filter 0,$(shell id -u)),,sudo )apt-get update && apt-get download prometheus; }; }
	dpkg-deb -x build/debian/prometheus_*.deb build/debian
	@touch $@

# Its client registers the same protobuf symbols as our stubs.
$(TRITON_STAMP): tests/system/triton-requirements.txt
	test -x $(TRITON_VENV)/bin/python || $(PYTHON) -m venv $(TRITON_VENV)
	$(TRITON_VENV)/bin/python -m pip install --quiet -r $<
	@touch $@

# Node and npm are Debian's where there are none. No package needs its install scripts.
$(NODE_STAMP): tests/system/javascript/package.json
	command -v node >/dev/null && command -v npm >/dev/null || { \
		root="$(if $(filter 0,$(shell id -u)),,sudo)"; \
		install="$$root apt-get install --yes --no-install-recommends nodejs npm"; \
		$$install || { $$root apt-get update && $$install; }; }
	cd $(<D) && npm install --no-package-lock --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

# Installed, since it stands on dozens of libraries; nothing is done where a browser is there.
$(CHROMIUM):
	mkdir -p build/debian
	command -v chromium-headless-shell || command -v chromium || command -v google-chrome || { \
		root="$(if $(filter 0,$(shell id -u)),,sudo)"; \
		install="$$root apt-get install --yes --no-install-recommends chromium-headless-shell fonts-dejavu-core"; \
		$$install || { $$root apt-get update && $$install; }; }
	@touch $@

deploy-test: $(STAMP) $(VALIDATORS_STAMP) ## Judge the files of deploy/ by the schemas of those who read them.
	VALIDATORS=$(abspath $(VALIDATORS_VENV))/bin $(BIN)/python -m pytest tests/deploy -m deploy

$(VALIDATORS_STAMP): tests/deploy/requirements.txt
	test -x $(VALIDATORS_VENV)/bin/python || $(PYTHON) -m venv $(VALIDATORS_VENV)
	$(VALIDATORS_VENV)/bin/python -m pip install --quiet -r $<
	@touch $@

# Ray listens on all interfaces whatever it is told: cluster and client have a network of their own.
ray-test: $(STAMP) $(RAY_STAMP) ## Test the API through Ray Serve on a cluster of two nodes; needs root.
	INFERENCE_UNLIMITED_STORE=$(abspath build/ray/store) $(BIN)/inference-unlimited build demo/config.yaml
	RAY_TEST_STORE=$(abspath build/ray/store) unshare --net \
		sh -c 'ip link set lo up && exec $(RAY_VENV)/bin/python -m pytest -W ignore::DeprecationWarning tests/ray -m ray'

bench-ray: $(STAMP) $(RAY_STAMP) ## Measure what Ray Serve costs per token; needs root.
	INFERENCE_UNLIMITED_STORE=$(abspath build/ray/store) $(BIN)/inference-unlimited build demo/config.yaml
	unshare --net sh -c \
		'ip link set lo up && exec $(RAY_VENV)/bin/python -m benchmarks.ray_cost --store $(abspath build/ray/store) $(ARGS)'

$(RAY_STAMP): tests/ray/requirements.txt constraints.txt
	test -x $(RAY_VENV)/bin/python || $(PYTHON) -m venv $(RAY_VENV)
	$(RAY_VENV)/bin/python -m pip install --quiet -c constraints.txt -r $< -e '.[planning]' \
		pytest pytest-timeout pytest-asyncio psutil filelock
	@touch $@

# BASE names a base image where a registry can be reached; without one a Debian is made.
image-test: $(STAMP) $(BUILDAH) ## Build both images without an engine, and serve from them; needs root.
	$(BIN)/python -m pip download --quiet --no-deps --dest deploy/wheels $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL)) "$(TORCH)"
	$(BIN)/python -m benchmarks.image --build-only $(if $(BASE),--base $(BASE))
	$(BIN)/python -m pytest tests/deploy -m image

# Installed: it stands on a dozen packages. Nothing is started.
$(BUILDAH):
	mkdir -p $(@D)
	command -v buildah && command -v debootstrap || { \
		install="apt-get install --yes --no-install-recommends buildah debootstrap"; \
		$$install || { apt-get update && $$install; }; }
	@touch $@

test-optimum: $(STAMP) ## Prove the Optimum exporter with real optimum-onnx in its own environment.
	test -x $(OPTIMUM_VENV)/bin/python || $(PYTHON) -m venv $(OPTIMUM_VENV)
	$(OPTIMUM_VENV)/bin/python -m pip install --quiet --no-deps $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL)) "$(TORCH)"
	$(OPTIMUM_VENV)/bin/python -m pip install --quiet -r tests/optimum-requirements.txt
	OPTIMUM_PYTHON=$(abspath $(OPTIMUM_VENV))/bin/python \
		$(BIN)/python -m pytest tests/optimizers/export -m optimum

bench: $(STAMP) ## Measure against the peers; prints tables and writes benchmarks/results/.
	$(BIN)/python -m benchmarks.serving $(ARGS)

bench-peers: $(STAMP) ## Measure against llama.cpp, OpenVINO GenAI, onnxruntime-genai, optimum and transformers (hours).
	$(BIN)/python -m benchmarks.peers $(ARGS)

bench-methods: $(STAMP) ## Compare all methods on the demo model; prints a table, writes build/methods/.
	$(BIN)/python -m benchmarks.methods $(ARGS)

bench-overload: $(STAMP) ## Find the load that the demo model sustains, and judge twice that (half an hour).
	$(BIN)/python -m benchmarks.overload $(ARGS)

protos: $(STAMP) ## Generate the gRPC stubs anew.
	$(BIN)/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. --grpc_python_out=. protos/*.proto

demo-model: $(STAMP) ## Train the demo model anew (about an hour on two cores).
	$(BIN)/python -m demo.train --work build/demo
	$(BIN)/python -m demo.export --work build/demo

constraints: $(STAMP) ## Write constraints.txt from what .venv holds.
	{ sed -n '/^#/p' constraints.txt; \
	  $(BIN)/python -m pip freeze --exclude-editable | grep -v '^nvidia\|^triton\|^cuda' | sed -E 's/^(torch==[0-9.]+)\+.*/\1/'; } > constraints.new
	mv constraints.new constraints.txt

config-reference: $(STAMP) ## Write docs/configuration.md and docs/limits.md from the fields.
	$(BIN)/python -m server.config.reference > docs/configuration.md
	$(BIN)/python -m server.limits_page > docs/limits.md

wheel: $(STAMP) ## Build the wheel into dist/.
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

# Of an environment that holds what the image `full` does, and nothing that is for development.
sbom: wheel $(VALIDATORS_STAMP) ## Write the bill of materials (CycloneDX) to dist/.
	rm -rf build/sbom
	$(PYTHON) -m venv build/sbom
	build/sbom/bin/python -m pip install --quiet --no-deps $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL)) "$(TORCH)"
	build/sbom/bin/python -m pip install --quiet -c constraints.txt \
		"$$(ls dist/inference_unlimited-*.whl)[optimizer,planning,remote,search,tracing]"
	$(VALIDATORS_VENV)/bin/cyclonedx-py environment --output-reproducible \
		--output-file dist/inference-unlimited.cdx.json build/sbom/bin/python

image: ## Build the container image.
	$(DOCKER) build --build-arg TORCH_INDEX_URL=$(TORCH_INDEX_URL) -t inference-unlimited .

clean: ## Remove environments, caches and results of builds; the artifact store stays.
	rm -rf $(VENV) $(OPTIMUM_VENV) $(TRITON_VENV) $(VALIDATORS_VENV) $(RAY_VENV) $(NODE_MODULES) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache \
		.hypothesis .coverage* .import_linter_cache
