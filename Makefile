# Everything a person runs. `make demo` and `make test` set themselves up on a bare machine.
PYTHON ?= python3.11
PORT ?= 8000
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo serve test lint format openapi bench bench-gpu eval clean

setup: $(READY)

$(READY): requirements/dev.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(READY)

demo: setup ## one command: Redis, API, worker, storage, the bundled model; pictures in out/
	$(BIN)/imageprompt demo --out out

serve: setup ## the whole service on 127.0.0.1:$(PORT) until Ctrl-C
	$(BIN)/imageprompt up --port $(PORT)

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

openapi: setup ## write openapi/openapi.yaml anew from the code
	$(BIN)/python -m service.openapi > openapi/openapi.yaml

bench: setup ## the engine against plain diffusers on this machine; out/bench/
	$(BIN)/python -m bench

bench-gpu: setup ## the same with full-size SDXL of random weights; needs CUDA
	$(BIN)/python -m bench --gpu

eval: setup ## judge the bundled model's pictures; docs/
	$(BIN)/python -m training.evaluate

clean:
	rm -rf $(VENV) out data build *.egg-info
