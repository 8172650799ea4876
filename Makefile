# Everything here works in a fresh clone with Python 3.11 or later, pip and make: the environment is made on first use,
# in .venv, and the installation is repeated when what it depends on changes.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory
# Compiled modules are written by the first process that imports them and read by the others.
unexport PYTHONDONTWRITEBYTECODE

VENV := .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.installed-runtime
DEVELOPMENT := $(VENV)/.installed-development
INSTALLED_FROM := pyproject.toml constraints.txt mpocompress/_version.py
CONSTRAINTS ?= constraints.txt
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
DOCS := docs/_build/.built
DOCS_FROM := $(shell find docs mpocompress examples *.md -name _build -prune -o -type f -not -name '*.pyc' -print)

# The first interpreter that is new enough; 3.11 before others, because the constraints were resolved for it.
PYTHON ?= $(shell for name in python3.11 python3 python; do \
	"$$name" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo "$$name" && break; done)

heading = @printf '\n=== %s ===\n' '$(1)'

# pytest-xdist runs the tests in this many processes; `auto` is one a core.
WORKERS ?= auto
PYTEST = $(BIN)/python -m pytest --numprocesses $(WORKERS)

# Checks run side by side, each printing its output in one piece; everything else runs in order.
ifndef SIDE_BY_SIDE
.NOTPARALLEL:
endif
side-by-side = @$(MAKE) SIDE_BY_SIDE=yes --jobs $(if $(filter output-sync,$(.FEATURES)),--output-sync=target) $(1)

.PHONY: help
help: ## list what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1	\2/' | expand -t 24

.PHONY: demo
demo: $(RUNTIME) ## compress the bundled checkpoint and show what it cost
	@$(BIN)/python examples/fashion/demo.py

.PHONY: check
check: $(DEVELOPMENT) ## the quick checks: style, types, layers and the fast tests
	$(call side-by-side,style types layers)
	$(call heading,fast tests)
	@$(PYTEST) -m 'not slow'

.PHONY: test
test: $(DEVELOPMENT) ## every check: style, types, layers, documentation, then the tests
	$(call side-by-side,style types layers docs)
	$(call heading,tests)
	@$(PYTEST)

.PHONY: test-all
test-all: $(DEVELOPMENT) ## every check, with more examples in the tests that draw them
	@HYPOTHESIS_PROFILE=thorough $(MAKE) test

.PHONY: coverage
coverage: $(DEVELOPMENT) ## the tests, and the lines and branches that they do not reach
	@$(PYTEST) --cov=mpocompress --cov-branch --cov-report=term-missing:skip-covered

.PHONY: lint
lint: $(DEVELOPMENT) ## style, types and the layers
	$(call side-by-side,style types layers)

.PHONY: style types layers
style: $(DEVELOPMENT)
	$(call heading,ruff)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(DEVELOPMENT)
	$(call heading,mypy)
	@$(BIN)/mypy

layers: $(DEVELOPMENT)
	$(call heading,import-linter)
	@$(BIN)/lint-imports --no-logo

.PHONY: docs
docs: $(DOCS) ## build the documentation into docs/_build/html, warnings being errors
	@echo 'docs/_build/html/index.html'

$(DOCS): $(DEVELOPMENT) $(DOCS_FROM)
	$(call heading,sphinx)
	@$(BIN)/sphinx-build -q -W --keep-going -E -b html -d docs/_build/doctrees docs docs/_build/html
	@touch $@

.PHONY: release-check
release-check: | $(BIN)/python ## build the wheel, install it in a clean environment and use it there
	@$(BIN)/python -m tools.release_check

.PHONY: reference
reference: $(DEVELOPMENT) ## write the generated pages of the documentation again
	@$(BIN)/python -m tools.cli_reference
	@$(BIN)/python -m tools.forms_page
	@$(BIN)/python -m tools.architecture_page
	@$(BIN)/python -m tools.schemas
	@$(BIN)/python -m tools.json_page

.PHONY: format
format: $(DEVELOPMENT) ## format the code and apply the safe fixes
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: clean
clean: ## remove the environment and everything that was built
	rm -rf $(VENV) build dist docs/_build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -type d -name __pycache__ -prune -exec rm -rf {} +

# Some systems split ensurepip off their Python; pip then fills the environment from outside.
$(BIN)/python:
	@test -n '$(PYTHON)' || { echo 'No Python 3.11 or later was found. Name one: make PYTHON=/path/to/python' >&2; exit 1; }
	$(call heading,making $(VENV))
	@$(PYTHON) -m venv $(VENV) 2>/dev/null || { \
		rm -rf $(VENV); \
		$(PYTHON) -m venv --without-pip $(VENV); \
		$(PYTHON) -m pip --python $(BIN)/python --disable-pip-version-check --no-input install --quiet pip; }

$(RUNTIME): $(INSTALLED_FROM) | $(BIN)/python
	$(call heading,installing the package)
	@$(PIP) install --quiet --no-compile --constraint '$(CONSTRAINTS)' --editable .
	@touch $@

$(DEVELOPMENT): $(INSTALLED_FROM) | $(BIN)/python
	$(call heading,installing the package with its development and documentation tools)
	@$(PIP) install --quiet --no-compile --constraint '$(CONSTRAINTS)' --editable '.[dev,docs,loops]'
	@touch $(RUNTIME) $@
