# Needs nothing but make and a Python >= 3.11 with pip; everything else goes into a .venv directory here.
#
#   make serve                      start the line-echo example on 127.0.0.1:9999
#   make test                       run the whole suite
#   make lint                       ruff, mypy and pyright, and whether every public name has a type
#   make docs                       build the documentation into docs/_build/html; needs Graphviz
#   make bench                      run the benchmarks
#   make clean                      remove whatever the other targets made
#
#   PYTHON=python3.12 make test     with another Python, in an environment of its own (.venv-3.12)
#   make serve PORT=7000            or ADDRESS=tcp://[::1]:7000
#   make test PYTEST_ARGS="-k tls"  arguments for pytest; by default: four processes
#   make bench BENCH_ARGS="--help"  arguments for benchmarks/run.py

PYTHON ?= python3
PORT ?= 9999
ADDRESS ?= tcp://127.0.0.1:$(PORT)
HINT = $(if $(filter tcp://%,$(ADDRESS)),--hint 'try: nc {host} {port}')
PYTEST_ARGS ?= --numprocesses=4 --dist=worksteal
BENCH_ARGS ?=

PYTHON_VERSION = $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
ifeq ($(PYTHON),python3)
VENV := .venv
else
VENV := .venv-$(or $(PYTHON_VERSION),unknown)
endif
BIN := $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check

# The tests start hundreds of programs. Without bytecode files each of them compiles the packages anew, which
# takes as long as all else that a start does.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help serve test lint lint-style lint-format lint-mypy lint-pyright lint-types docs bench clean

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' $(firstword $(MAKEFILE_LIST))

serve: $(VENV)/.has-cli
	@$(BIN)/python -m asyncserver serve docs/examples/line_echo.py:line_echo '$(ADDRESS)' $(HINT)

test: $(VENV)/.has-test
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: lint-style lint-format lint-mypy lint-pyright lint-types

lint-style: $(VENV)/.has-lint
	$(BIN)/ruff check .

lint-format: $(VENV)/.has-lint
	$(BIN)/ruff format --check .

lint-mypy: $(VENV)/.has-lint
	$(BIN)/mypy
	$(BIN)/mypy tests/typing

# --pythonpath: the packages to look into are those of this environment, wherever pyright itself was found.
lint-pyright: $(VENV)/.has-lint
	$(BIN)/pyright --pythonpath $(BIN)/python

# Whether those who use the packages get a type for everything. Pyright looks where a package is installed (not
# edited), and asks the Python on PATH where that is.
lint-types: $(VENV)/.has-lint
	@rm -rf build/installed
	@$(INSTALL) --no-deps --target build/installed .
	@for package in asyncserver compat; do \
	    PYTHONPATH=$(CURDIR)/build/installed PATH="$(abspath $(BIN)):$$PATH" \
	        pyright --verifytypes $$package --ignoreexternal >build/$$package-types.txt \
	        || { cat build/$$package-types.txt; exit 1; }; \
	    echo "$$package: $$(grep 'completeness score' build/$$package-types.txt)"; \
	done

# -W --keep-going: every warning is shown, and each of them is an error in the end. -E: from scratch, because a page
# that did not change may lead to one that did.
docs: $(VENV)/.has-docs
	@command -v dot >/dev/null || { echo "The diagrams need Graphviz's dot: apt-get install graphviz" >&2; exit 1; }
	$(BIN)/python -m sphinx -b html -n -W --keep-going -E -q docs docs/_build/html
	@echo "Built docs/_build/html/index.html"

bench: $(VENV)/.has-bench $(VENV)/.has-peers
	$(MAKE) -C benchmarks/loadgen
	$(BIN)/python benchmarks/run.py $(BENCH_ARGS)

clean:
	rm -rf .venv .venv-* build dist docs/_build .mypy_cache .pytest_cache .ruff_cache
	find asyncserver compat tests docs benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
	$(MAKE) -C benchmarks/loadgen clean

# One file per set of dependencies says that it is installed: the second `make serve` starts at once and
# needs no network, and a changed pyproject.toml installs again.
$(VENV)/.has-%: pyproject.toml | $(VENV)/.created
	@echo "Installing asyncserver[$*] into $(VENV) ..."
	@$(INSTALL) --editable '.[$*]'
	@touch $@

$(VENV)/.has-peers: benchmarks/requirements.txt | $(VENV)/.created
	@echo "Installing the servers to compare with into $(VENV) ..."
	@$(INSTALL) --requirement benchmarks/requirements.txt
	@touch $@

# Debian splits `ensurepip` off into python3-venv: without it the environment gets pip from the pip outside.
$(VENV)/.created:
	@$(PYTHON) -c '' 2>/dev/null || \
	    { echo "$(PYTHON) cannot be started: make PYTHON=... chooses another Python (3.11 or newer)." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "$(PYTHON) is Python $(PYTHON_VERSION), asyncserver needs 3.11 or newer:" \
	        "make PYTHON=... chooses another one." >&2; exit 1; }
	@echo "Creating $(VENV) with Python $(PYTHON_VERSION) ..."
	@if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then \
	    $(PYTHON) -m venv --clear $(VENV); \
	else \
	    $(PYTHON) -m venv --clear --without-pip $(VENV) && \
	    $(PYTHON) -m pip --python $(BIN)/python install --quiet --disable-pip-version-check pip; \
	fi || { rm -rf $(VENV); \
	    echo "$(PYTHON) cannot make a virtual environment with pip in it." \
	        "On Debian and Ubuntu: apt-get install python3-venv python3-pip." >&2; exit 1; }
	@touch $@
