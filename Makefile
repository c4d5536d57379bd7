# From a fresh clone: `make demo` to a result, `make test` to a green test run.
#   PYTHON=python3.12   the interpreter
#   VENV=none           use it as it is: its own torch, nothing fetched, nothing installed into it
#   TORCH=torch==…      what a virtual environment gets

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
REQUIRED_BACKENDS ?= reference,native,triton

ROOT := $(CURDIR)
# Without git, what lies there: a source that changed must not be tested as it was built before.
BUILT_FROM := csrc modgrad triton_kernels setup.py pyproject.toml MANIFEST.in
SOURCES := $(or $(shell git ls-files $(BUILT_FROM) 2>/dev/null),$(shell \
    find $(BUILT_FROM) -type f ! -name '*.so' ! -path '*/__pycache__/*'))
RUN := build/run

ifeq ($(VENV),none)
PY := $(PYTHON)
ENVIRONMENT :=
else
PY := $(ROOT)/$(VENV)/bin/python
ENVIRONMENT := $(VENV)/.ready
export PATH := $(ROOT)/$(VENV)/bin:$(PATH)
endif

# A torch without CUDA cannot load the CUDA module: spare the wait where nobody ships the wheel.
HAS_CUDA = $(shell $(PY) -c 'import torch; print(int(torch.version.cuda is not None))' 2>/dev/null)
LOCAL_BUILD = $(if $(filter 1,$(HAS_CUDA)),auto,cpu)
# A folder to import modgrad from, so that no environment is changed.
SITE := build/site
WITH_SITE = PYTHONPATH=$(ROOT)/$(SITE)

.PHONY: demo reproduce test oldest gpu gpu-tests gpu-sanitizer gpu-bench memcheck racecheck initcheck synccheck
.PHONY: bench results lint doctor clean

demo: $(SITE)/.ready
	cd build && $(WITH_SITE) $(PY) -m modgrad demo --output $(ROOT)/demo_results $(DEMO)

# What the theories predict beside what training gives: tables, and figures in reproductions/.
# REPRODUCE="--output docs/figures" makes the figures of docs/reproductions.md.
REPRODUCTIONS := phase_ratio permanent_bias winner_prediction joint_worse blend_noise competition_strength
reproduce: $(SITE)/.ready
	for name in $(REPRODUCTIONS); do \
	    $(WITH_SITE) $(PY) examples/reproduce/$$name.py $(REPRODUCE) || exit 1; \
	done

doctor: $(SITE)/.ready
	cd build && $(WITH_SITE) $(PY) -m modgrad doctor

bench: $(SITE)/.ready
	cd build && $(WITH_SITE) $(PY) -m modgrad bench --scaling --output $(ROOT)/bench_results $(BENCH)

# The numbers of README and docs, measured anew: a quarter of an hour of a quiet machine.
# BENCH="--only …" would keep a part as the whole: leave it empty. A commit first: lines name it.
RESULTS := benchmarks/results/cpu-$(shell getconf _NPROCESSORS_ONLN)-cores
PAGES = $(shell grep -l '^<!-- bench ' README.md benchmarks/README.md docs/*.md)
results: bench
	mkdir -p $(RESULTS) && rm -f $(RESULTS)/[0-9]*.jsonl
	cp bench_results/bench.jsonl $(RESULTS)/$$(date +%F).jsonl
	cp bench_results/bench.png $(RESULTS)/
	$(WITH_SITE) $(PY) -m modgrad bench --report $(PAGES)

$(VENV)/.ready: pyproject.toml
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet $(TORCH)
	$(PY) -m pip install --quiet numpy rich matplotlib pytest pybind11 scikit-learn \
	    triton ruff mypy build "setuptools>=77" wheel ninja
	touch $@

$(SITE)/.ready: $(ENVIRONMENT) $(SOURCES)
	rm -rf $(SITE) build/local
	MODGRAD_BUILD=$(LOCAL_BUILD) $(PY) -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir build/local .
	$(PY) -m pip install --quiet --no-index --no-deps --target $(SITE) build/local/*.whl
	touch $@

lint: $(ENVIRONMENT)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# The tests, away from the checkout: what is tested is what is installed.
$(RUN): FORCE
	rm -rf $(RUN) && mkdir -p $(RUN)
	cp -r tests pyproject.toml $(RUN)

ifeq ($(VENV),none)
# Linters and a network may be missing: build, and test the build.
test: $(SITE)/.ready $(RUN)
	cd $(RUN) && $(WITH_SITE) MODGRAD_SOURCE=$(ROOT) $(PY) -m pytest $(PYTEST)
else
test: lint build/fresh/.ready $(RUN)
	cd $(RUN) && TRITON_INTERPRET=1 MODGRAD_REQUIRE_BACKENDS=$(REQUIRED_BACKENDS) \
	    MODGRAD_SOURCE=$(ROOT) MODGRAD_DIST=$(ROOT)/build/dist $(ROOT)/build/fresh/bin/python -m pytest $(PYTEST)
endif

# sdist -> wheel -> an environment that has never seen the checkout
build/fresh/.ready: $(ENVIRONMENT) $(SOURCES)
	rm -rf build/dist build/unpacked build/fresh
	$(PY) -m build --quiet --sdist --no-isolation --outdir build/dist .
	mkdir -p build/unpacked && tar -xzf build/dist/*.tar.gz -C build/unpacked --strip-components=1
	cd build/unpacked && $(PY) -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir $(ROOT)/build/dist .
	$(PYTHON) -m venv build/fresh
	build/fresh/bin/python -m pip install --quiet $(TORCH)
	build/fresh/bin/python -m pip install --quiet "$$(ls build/dist/*.whl)[test]"
	touch $@

# The oldest torch that is promised: its headers lack what newer ones have.
oldest: $(ENVIRONMENT)
	PYTHONPATH=tests $(PY) tools/oldest_torch.py build/oldest

# What only a GPU can show, in parts of some minutes: every test on CUDA with every backend, the
# sanitizer (its tools side by side with make -j4), the benchmarks.
TOOLS := memcheck racecheck initcheck synccheck
SIDE_BY_SIDE = $(shell $(PY) -c 'import xdist; print("-n 8")' 2>/dev/null)
gpu: gpu-tests gpu-sanitizer gpu-bench

gpu-tests: $(SITE)/.ready $(RUN)
	cd $(RUN) && $(WITH_SITE) MODGRAD_SOURCE=$(ROOT) MODGRAD_REQUIRE_BACKENDS=$(REQUIRED_BACKENDS) \
	    $(PY) -m pytest $(SIDE_BY_SIDE) -k "cuda and not test_cuda_" $(PYTEST)

gpu-sanitizer: $(TOOLS)
$(TOOLS): $(SITE)/.ready
	$(WITH_SITE) PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $@ --error-exitcode 1 \
	    $(PY) tests/sanitize.py

gpu-bench: $(SITE)/.ready
	cd build && $(WITH_SITE) $(PY) -m modgrad bench --device cuda --scaling --output $(ROOT)/bench_results $(BENCH)

clean:
	rm -rf build dist *.egg-info demo_results reproductions bench_results

.PHONY: FORCE
FORCE:
