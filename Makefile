# `make run` and `make test` do all the set-up on a fresh machine, from requirements.lock. A torch that is in .venv stays;
# TORCH names another, such as TORCH=torch==2.13.0.
PYTHON ?= python3
TORCH ?=
TESTS ?=
WORKERS ?= 2
STAGES ?=
# Tests run in so many processes, each file in one of them.
PYTEST := -m pytest -n $(WORKERS) --dist loadfile
RAY_TESTS := tests/examples/test_ray_serve.py tests/replay/test_ray_pool.py
VENV := .venv
BIN := $(VENV)/bin
# An editable install keeps a list of the package's modules: one that is added, moved or deleted changes its folder's time.
INGREDIENTS := pyproject.toml requirements.lock setup/environment.py $(shell find src/native -type f) \
	$(shell find src/dali -type d ! -name __pycache__)

.PHONY: run test test-newest test-oldest ray gpu-tests gpu-check lint types sweep models-page packages sanitize lock clean
.DEFAULT_GOAL := run

run: $(VENV)/.installed  ## install what is needed and let the model that ships inside answer
	$(BIN)/dali run "Tell me a story about a little dog." --seed 1

test: $(VENV)/.installed  ## the test suite; TESTS="tests/cli ..." for some of it
	$(BIN)/python $(PYTEST) $(TESTS)

test-newest:  ## the suite with the newest transformers that pyproject.toml allows, looked up each time
	$(PYTHON) setup/environment.py $(VENV)-newest --torch "$(TORCH)" --transformers newest
	$(VENV)-newest/bin/python $(PYTEST) $(TESTS)

test-oldest: $(VENV)-oldest/.installed  ## the suite with the oldest
	$(VENV)-oldest/bin/python $(PYTEST) $(TESTS)

ray: $(VENV)-ray/.installed  ## what needs a Ray cluster, which it makes on this machine
	$(VENV)-ray/bin/python -m pytest -m ray $(RAY_TESTS)

gpu-tests: $(VENV)/.installed  ## what can be tested of the GPU path without a GPU
	$(BIN)/python $(PYTEST) tests/gpu tests/kernels/gpu

gpu-check:  ## check and measure dali on this machine's GPU, with the PYTHON that has torch for it; STAGES="env link ..." for some
	$(PYTHON) benchmarks/gpu_check/run.py $(if $(STAGES),--stages $(STAGES))

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/mypy

sweep: $(VENV)/.installed  ## tiny models of every family against transformers, three minutes
	$(BIN)/python -m pytest tests/families_sweep/sweep.py

models-page: $(VENV)/.installed  ## docs/MODELS.md anew, from what the sweep finds
	PYTHONPATH=tests $(BIN)/python -W ignore -m families_sweep.page

packages: $(VENV)/.installed  ## sdist and wheel in dist/, installed elsewhere to answer there
	$(BIN)/python tests/packaging/packages.py

sanitize: $(VENV)/.installed  ## the native tests under the address and undefined-behaviour sanitizers
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python tests/sanitize.py

lock:  ## requirements.lock anew, of the newest packages
	$(PYTHON) setup/lock.py $(TORCH)

$(VENV)/.installed: $(INGREDIENTS)
	$(PYTHON) setup/environment.py $(VENV) --torch "$(TORCH)"
	touch $@

$(VENV)-oldest/.installed: $(INGREDIENTS)
	$(PYTHON) setup/environment.py $(VENV)-oldest --torch "$(TORCH)" --transformers oldest
	touch $@

$(VENV)-ray/.installed: $(VENV)/.installed requirements-ray.lock
	$(BIN)/python setup/beside.py $(VENV)-ray $(VENV) requirements-ray.lock
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-newest $(VENV)-oldest $(VENV)-ray $(VENV)-lock build dist .mypy_cache .pytest_cache .ruff_cache
