# Every target does its own set-up: it needs Python 3.11 or newer, pip and make.
#   make demo PYTHON=python3.12            another Python
#   make setup PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"    further options for pip
PYTHON ?= python3
PIP_FLAGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help setup demo test check bench

help:
	@echo "make demo    complete eight prompts with the bundled pair, plain beside speculative"
	@echo "make test    run the tests"
	@echo "make check   ruff, mypy, import-linter, file sizes"
	@echo "make bench   measure the bundled pair, write benchmarks/default_pair.json and the README's figures"
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

setup: $(VENV)/.dev

demo: $(VENV)/.package
	$(BIN)/forerun demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/sizes.py

bench: $(VENV)/.package
	$(BIN)/forerun bench --output benchmarks/default_pair.json
	$(BIN)/python scripts/figures.py
