# Every target does its own set-up: it needs Python 3.11 or newer, pip and make.
#   make demo PYTHON=python3.12            another Python
#   make setup PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"    further options for pip
PYTHON ?= python3
PIP_FLAGS ?=
GPU_FLAGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS)
PIP := $(PIP_INSTALL) -c constraints.txt
# a client of another age, which the tests of the server talk through, too; it cannot share an environment with the current one
OPENAI_1 := openai==1.109.1 httpx==0.28.1 pydantic==2.14.4 anyio==4.16.0

.DEFAULT_GOAL := help
.PHONY: help setup demo test check bench fuzz bench-serving bench-gpu

help:
	@echo "make demo    complete eight prompts with the bundled pair, plain beside speculative"
	@echo "make test    run the tests"
	@echo "make check   ruff, mypy, import-linter, file sizes"
	@echo "make bench   measure the bundled pair, write benchmarks/default_pair.json and the README's figures"
	@echo "make bench-serving   measure a served bundled pair: soak, throughput, prefixes, faults, side channel; half an hour and more"
	@echo "make bench-gpu   measure the bundled pair and its target widened to 8B, 1B and 3B on a CUDA device; GPU_FLAGS=\"--minutes 10\" for less of it"
	@echo "make fuzz    schemathesis against a live server; any 5xx, hang or dead engine fails"
	@echo "make setup   only create $(VENV) with the package and the tools"

# The folder itself is the stamp of the environment; .package and .dev are those of what is installed in it.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("forerun needs Python 3.11 or newer: make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else 0)'
	@echo "creating $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { \
	  $(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }

$(VENV)/.package: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing forerun"
	@$(PIP) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.package
	@echo "installing the development tools"
	@$(PIP) -e '.[dev]'
	@touch $@

$(VENV)/.openai-1: Makefile | $(BIN)/python
	@echo "installing openai 1.x beside the environment"
	@rm -rf $(VENV)/openai-1
	@$(PIP_INSTALL) --target $(VENV)/openai-1 $(OPENAI_1)
	@touch $@

$(VENV)/.fuzz: $(VENV)/.package
	@echo "installing schemathesis"
	@$(PIP) -e '.[fuzz]'
	@touch $@

setup: $(VENV)/.dev $(VENV)/.openai-1

demo: $(VENV)/.package
	$(BIN)/forerun demo

test: $(VENV)/.dev $(VENV)/.openai-1
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/sizes.py

bench: $(VENV)/.package
	$(BIN)/forerun bench --output benchmarks/default_pair.json
	$(BIN)/python scripts/figures.py

# One after the other, on a machine that does nothing else. Each writes its file whatever its verdict; the last line says whether every goal was reached.
bench-serving: $(VENV)/.package
	@failed=; for name in throughput prefix faults soak; do \
	  $(BIN)/python scripts/serving_$$name.py --output benchmarks/serving_$$name.json || failed="$$failed serving_$$name"; done; \
	$(BIN)/python scripts/side_channel.py --output benchmarks/side_channel.json || failed="$$failed side_channel"; \
	test -z "$$failed" || { echo "goals missed in:$$failed"; exit 1; }

# Without a CUDA device: one line that says what is missing, exit status 2.
bench-gpu: $(VENV)/.package
	$(BIN)/python scripts/bench_gpu.py $(GPU_FLAGS)

fuzz: $(VENV)/.fuzz
	$(BIN)/python scripts/fuzz.py
