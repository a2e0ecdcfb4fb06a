# `make help` lists the targets. Each one installs what it needs into .venv, so none has to run before another.
#
# Variables:
#   PYTHON       the Python to build .venv with; default: the first of python3, python3.13, ... that is new enough
#   PIP_ARGS     more arguments for pip, for example another index with CPU builds of torch
#   PYTEST_ARGS  more arguments for pytest, for example PYTEST_ARGS="-k sphere"

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:

VENV := .venv
BIN := $(VENV)/bin
PYTHONS := $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python3.14)
PIP_ARGS ?=
PYTEST_ARGS ?=
INSTALL = $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt $(PIP_ARGS)

# What pip says goes to .venv/NAME.log; its end is shown if it fails.
QUIETLY = @$(BIN)/python tools/quietly.py $(@:.stamp=.log) "Installing the packages for '$(basename $(@F))'"

# Two workers, one torch thread each. loadscope keeps the tests of one module in one worker, so that what a
# module prepares once (a study that ran, a browser that is open) is prepared once. tests/conftest.py has the order.
# Hundreds of tests start a Python of their own, which is not to compile the sources each time.
PYTEST = OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder

.PHONY: help demo test test-slow compat lint types docs dist bench clean browser

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/study.stamp ## audit three well-known set-ups, show what was found, run the first study
	@$(BIN)/python tools/demo.py

test: $(VENV)/dev.stamp browser ## run the tests, without the slow ones
	$(PYTEST) $(PYTEST_ARGS)

test-slow: $(VENV)/dev.stamp browser ## run the slow tests only
	$(PYTEST) -m slow $(PYTEST_ARGS)

compat: ## run the tests with another torch, in an environment of its own: make compat TORCH=2.9.1
	$(firstword $(PYTHONS)) tools/compat.py $(TORCH) $(PYTEST_ARGS)

lint: $(VENV)/dev.stamp ## check style and format with ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/dev.stamp ## check types with mypy --strict
	$(BIN)/mypy

docs: $(VENV)/docs.stamp $(VENV)/dev.stamp ## build the documentation into site/, and check what is made from results/ and docstrings
	$(BIN)/python tools/pages.py check
	$(BIN)/python tools/results.py check --pages
	HALFLIFE_REPOSITORY="$$(sed -n 's/^repository-code: *//p' CITATION.cff)" NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

dist: $(VENV)/docs.stamp $(VENV)/dev.stamp ## build wheel and sdist into dist/, and try both as a user gets them
	$(BIN)/python -P tools/dist.py $(PIP_ARGS)

bench: $(VENV)/dev.stamp ## run every script in benchmarks/
	@set -e; for script in benchmarks/*.py; do \
	    if [ "$$script" = benchmarks/conftest.py ]; then continue; fi; \
	    echo "== $$script"; $(BIN)/python "$$script"; \
	done

clean: ## remove .venv, built pages and caches; halflife-runs/ and results/ stay
	rm -rf $(VENV) site dist halflife-report .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# ---- what the targets above install; a stamp is remade when pyproject.toml or constraints.txt changes ----

$(VENV)/made.stamp:
	@found=""; for python in $(PYTHONS); do \
	    if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	        found="$$python"; break; \
	    fi; \
	done; \
	if [ -z "$$found" ]; then \
	    echo "halflife needs Python 3.11 or newer and none of these is: $(PYTHONS); install one, or name it: make PYTHON=/path/to/python." >&2; \
	    exit 1; \
	fi; \
	if ! "$$found" -c 'import ensurepip, venv' >/dev/null 2>&1; then \
	    echo "$$found cannot make a virtual environment because its venv module is missing; install it (Debian, Ubuntu: apt-get install python3-venv) and run make again." >&2; \
	    exit 1; \
	fi; \
	echo "Making $(VENV) with $$found. The first installation takes a few minutes."; \
	"$$found" -m venv $(VENV)
	@touch $@

$(VENV)/study.stamp: pyproject.toml constraints.txt $(VENV)/made.stamp
	$(QUIETLY) $(INSTALL) -e '.[study]'
	@touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt $(VENV)/made.stamp
	$(QUIETLY) $(INSTALL) -e '.[dev]'
	@touch $@

$(VENV)/docs.stamp: pyproject.toml constraints.txt $(VENV)/made.stamp
	$(QUIETLY) $(INSTALL) -e '.[docs]'
	@touch $@

# The tests of the report page drive a chromium. The tests say themselves what happens without one.
browser:
	@if command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null; then \
	    :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "Installing chromium for the tests of the report page."; \
	    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null; } \
	        || echo "chromium could not be installed: the tests of the report page need chromium or google-chrome on PATH." >&2; \
	else \
	    echo "The tests of the report page need chromium or google-chrome on PATH, and neither is there." >&2; \
	fi
