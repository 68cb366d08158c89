# make test    everything that is checked, in an environment of its own
# make demo    trains la-ginr-tiny on photographs and shows what it learnt
# make bench   times every operator against the published formulation
# make clean   removes the environment and everything built
#
# PYTHON=python3.12 chooses the interpreter, VENV=path the environment.

PYTHON ?= python3
VENV ?= .venv
TRITON ?= triton==3.6.0

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
SOURCES := CMakeLists.txt pyproject.toml constraints.txt $(wildcard cmake/*) \
	$(shell find csrc -type f)

.PHONY: test demo bench bench-check clean

test: $(VENV)/.installed-dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/python -m pytest

demo: $(VENV)/.installed
	$(BIN)/python -m ginr_fast.cli demo

bench: $(VENV)/.installed-dev
	$(BIN)/python -m pytest benchmarks --benchmark-only

# Every benchmark once, untimed.
bench-check: $(VENV)/.installed-dev
	$(BIN)/python -m pytest benchmarks --benchmark-disable

clean:
	rm -rf $(VENV) build runs .benchmarks .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first and pinned, so that nothing later draws in another build of it.
$(VENV)/.environment: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "ginr_fast needs Python 3.10 or newer, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1)."; \
		echo "Choose another one: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) cmake ninja pybind11 scikit-build-core
	@# Only the CPU builds of torch for Linux come without Triton.
	[ "$$(uname -s)" != Linux ] || $(BIN)/python -c 'import triton' 2>/dev/null || $(PIP) $(TRITON)
	touch $@

$(VENV)/.installed: $(VENV)/.environment $(SOURCES)
	$(PIP) --no-build-isolation --editable '.[train]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.environment $(SOURCES)
	$(PIP) --no-build-isolation --editable '.[train,test,dev,bench]'
	touch $(VENV)/.installed $@
