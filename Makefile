# `make run` and `make test` do all the set-up on a fresh machine.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test lint types sanitize clean
.DEFAULT_GOAL := run

run: $(VENV)/.installed  ## install what is needed and let the model that ships inside answer
	$(BIN)/dali run "Tell me a story about a little dog." --seed 1

test: $(VENV)/.installed-dev  ## the test suite
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

# torch first and by itself: what follows is then satisfied by it and drags in no other build. The kernels are compiled on the way.
$(VENV)/.installed: pyproject.toml $(wildcard src/native/*.txt src/native/*/*)
	$(PYTHON) -c 'import sys; sys.exit("dali needs Python 3.11 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

sanitize: $(VENV)/.installed-dev  ## the native tests under the address and undefined-behaviour sanitizers
	$(BIN)/python -m pip install --quiet --disable-pip-version-check nanobind cmake ninja
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python tests/sanitize.py

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache
