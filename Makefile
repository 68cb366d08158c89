# make test    everything that is checked, in an environment of its own
# make demo    trains la-ginr-tiny on photographs and shows what it learnt
# make bench   times every operator against the published formulation
# make wheel   builds a wheel, installs it in a clean environment and tries it
# make docs    builds the documentation site into build/site; any warning ends it
# make sanitize  tests the C++ code under AddressSanitizer and UndefinedBehaviorSanitizer
# make clean   removes the environment and everything built
#
# PYTHON=python3.12 chooses the interpreter, VENV=path the environment, WORKERS=4 how many processes
# run tests.

PYTHON ?= python3
VENV ?= .venv
TRITON ?= triton==3.6.0
WORKERS ?= 2

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
SOURCES := CMakeLists.txt pyproject.toml constraints.txt $(wildcard cmake/*) \
	$(shell find csrc -type f)

# One thread each: threads of several processes on the same cores wait for one another.
TESTS = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.PHONY: test demo bench bench-check wheel docs sanitize clean

test: $(VENV)/.installed-dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(TESTS)

demo: $(VENV)/.installed
	$(BIN)/python -m ginr_fast.cli demo

bench: $(VENV)/.installed-dev
	$(BIN)/python -m pytest benchmarks --benchmark-only

# Every benchmark once, untimed; what torch.compile makes of a rival is left out.
bench-check: $(VENV)/.installed-dev
	$(TESTS) benchmarks --benchmark-disable

# The extension once more, with sanitizers, beside the installed one; what they find ends the run.
# Left out: what calls no kernel of ours but takes long (compilers), or none at all (float64).
SANITIZE := build/sanitize
SANITIZED_TESTS := tests/test_build.py tests/test_vector_math.py tests/test_mixture_average.py \
	tests/test_field_mlp.py \
	tests/test_field_checks.py tests/test_volume_render.py tests/test_composite.py \
	tests/test_occupancy.py tests/test_render_checks.py tests/test_fuzz.py tests/test_split_gemm.py

sanitize: $(VENV)/.installed-dev
	$(BIN)/cmake -S . -B $(SANITIZE) -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja \
		-DPython_EXECUTABLE=$(abspath $(BIN))/python \
		-Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir) \
		-DGINR_FAST_CUDA=OFF -DGINR_FAST_SANITIZE=address,undefined
	$(BIN)/cmake --build $(SANITIZE)
	LD_PRELOAD="$$($(or $(CXX),c++) -print-file-name=libasan.so) \
		$$($(or $(CXX),c++) -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0:halt_on_error=1 \
	UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	OMP_NUM_THREADS=1 PYTHONPATH=tests \
	$(BIN)/python -m pytest -p sanitized_extension -p no:cacheprovider $(SANITIZED_TESTS) \
		-k "not compiled and not exported and not opcheck and not gradcheck and not compiles"

# The wheel as a user without nvcc gets it. The smoke test runs elsewhere than in the checkout.
WHEEL := build/wheel

wheel: $(VENV)/.environment
	rm -rf $(WHEEL)
	GINR_FAST_CUDA=OFF $(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation \
		--config-settings=build-dir=$(WHEEL)/cmake --wheel-dir $(WHEEL)/dist .
	$(PYTHON) -m venv $(WHEEL)/venv
	$(WHEEL)/venv/bin/python -m pip install --quiet --constraint constraints.txt \
		$(if $(filter Linux,$(shell uname -s)),$(TRITON)) $(WHEEL)/dist/*.whl
	$(WHEEL)/venv/bin/python tests/wheel_smoke.py

docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

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
	$(PIP) --no-build-isolation --editable '.[train,generate,view,test,dev,bench,docs]'
	touch $(VENV)/.installed $@
