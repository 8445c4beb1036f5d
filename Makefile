# Everything a person runs. `make demo` and `make test` set themselves up on a bare machine.
PYTHON ?= python3.11
PORT ?= 8000
MINUTES ?= 10
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# What the service runs, and what its tests, linters and benchmarks need beside it.
RUN := $(VENV)/.run
DEV := $(VENV)/.dev

.DEFAULT_GOAL := help
.PHONY: help setup demo serve test test-images test-manifests checkov hashes sbom lint format openapi bench \
	bench-gpu bench-memory bench-http bench-costs bench-uploads bench-waiting bench-workers bench-scale faults soak overload \
	hostile train eval clean

help: ## list the targets
	@awk -F ': .*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(DEV) ## install everything to develop and test into .venv

$(RUN): $(wildcard requirements/*.txt) pyproject.toml
	$(PYTHON) -m venv $(VENV)
	@echo "installing what the service runs into $(VENV)"
	$(PIP) install --requirement requirements/demo.txt
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $(RUN)

$(DEV): $(RUN)
	@echo "installing what tests and benchmarks need into $(VENV)"
	$(PIP) install --quiet --requirement requirements/dev.txt
	@touch $(DEV)

demo: $(RUN) ## one command: Redis, API, worker, storage, the bundled model; pictures in out/
	$(BIN)/imageprompt demo --out out

serve: $(RUN) ## the whole service on 127.0.0.1:$(PORT) until Ctrl-C
	$(BIN)/imageprompt up --port $(PORT)

# Two processes: most tests wait for a server or a worker of their own. Files stay whole and in order.
test: setup ## the whole test suite
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-images: setup ## build and run the images (root; buildah, podman, runc, debootstrap); minutes
	$(BIN)/python -m pip install --quiet uv==0.13.9
	$(BIN)/python -m pytest -rA --junitxml=out/images.xml tests/deploy/images.py

test-manifests: setup ## every combination of the components, by kustomize and Helm; minutes
	$(BIN)/python -m pytest -rA tests/deploy/combinations.py

checkov: ## checkov over both overlays; exceptions below
	$(PYTHON) -m venv out/checkov
	out/checkov/bin/python -m pip install --quiet --disable-pip-version-check checkov==3.3.30
# Digests (43) are the operator's to add, tags never move (15), one container only waits (8, 9), and
# the trial's Redis and store run as their images' users (40).
	for overlay in gpu local; do kubectl kustomize k8s/overlays/$$overlay > out/$$overlay.yaml && \
		out/checkov/bin/checkov -f out/$$overlay.yaml --framework kubernetes --quiet --compact \
		--skip-download --skip-check CKV_K8S_43,CKV_K8S_15,CKV_K8S_8,CKV_K8S_9,CKV_K8S_40 || exit 1; done

hashes: setup ## write requirements/hashed/ again, after a pin has changed
	$(BIN)/python -m pip install --quiet uv==0.13.9
	$(BIN)/python requirements/hashes.py

sbom: ## a software bill of materials of each image; out/sbom/
	$(PYTHON) -m venv out/sbom/venv
	out/sbom/venv/bin/python -m pip install --quiet --disable-pip-version-check cyclonedx-bom==7.5.0
	for image in requirements/hashed/*.txt; do out/sbom/venv/bin/cyclonedx-py requirements $$image \
		--pyproject pyproject.toml --output-file out/sbom/$$(basename $$image .txt).cdx.json || exit 1; done

lint: setup ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup ## rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

openapi: setup ## write openapi/openapi.yaml anew from the code
	$(BIN)/python -m service.openapi > openapi/openapi.yaml

bench: setup ## the engine against plain diffusers on this machine; out/bench/
	$(BIN)/python -m bench

bench-gpu: setup ## the same with full-size SDXL of random weights; needs CUDA; OPTIONS=--no-compile
	$(BIN)/python -m pip install --quiet --no-deps torchao==0.18.0
	$(BIN)/python -m bench --gpu $(OPTIONS)

bench-memory: setup ## memory of the engine over 500 jobs that use everything; out/bench/
	$(BIN)/python -m bench.memory

bench-http: setup ## the HTTP layer against cog's and LitServe's; out/bench/
	$(BIN)/python -m bench.http

bench-costs: setup ## what a job costs the service around its model; docs/costs.md
	$(BIN)/python -m bench.costs

bench-uploads: setup ## what an upload costs to read, by kind; out/bench/
	$(BIN)/python -m bench.uploads

bench-waiting: setup ## polls, lists and posts while 100,000 jobs wait; out/bench/
	$(BIN)/python -m bench.waiting

bench-workers: setup ## throughput of 1, 2 and 4 workers whose steps only sleep
	$(BIN)/python -m bench.workers

bench-scale: setup ## measure, simulate a cluster, draw docs/scaling's charts
	$(BIN)/python -m bench.scale

faults: setup ## break everything 20 times each; about an hour; out/faults.md
	$(BIN)/python -m tests.faults --repeat 20

soak: setup ## a quarter of an hour of mixed load with cancels and kills; out/soak.md
	$(BIN)/python -m tests.faults.soak --minutes 15

overload: setup ## $(MINUTES) minutes of twice the requests that can be done; out/overload.md
	$(BIN)/python -m tests.faults.overload --minutes $(MINUTES)

hostile: setup ## 8,000 hostile uploads and 20 minutes of hostile clients; out/hostile.md
	$(BIN)/python -m tests.hostile 8000 1200

train: setup ## the bundled model by its recipe, hours; resumable; work/ and models/shapes
	$(BIN)/python -m training

eval: setup ## judge the bundled model's pictures; docs/
	$(BIN)/python -m training.evaluate

clean: ## remove what was installed and made here
	rm -rf $(VENV) out data build *.egg-info
