# Everything here works in a fresh clone with Python 3.11 or later, pip and make: the environment is made on first use,
# in .venv, and the installation is repeated when what it depends on changes.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.installed-runtime
DEVELOPMENT := $(VENV)/.installed-development
INSTALLED_FROM := pyproject.toml constraints.txt mpocompress/_version.py
CONSTRAINTS ?= constraints.txt
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input

# The first interpreter that is new enough; 3.11 before others, because the constraints were resolved for it.
PYTHON ?= $(shell for name in python3.11 python3 python; do \
	"$$name" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo "$$name" && break; done)

heading = @printf '\n=== %s ===\n' '$(1)'

.PHONY: help
help: ## list what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1	\2/' | expand -t 24

.PHONY: demo
demo: $(RUNTIME) ## compress the bundled checkpoint and show what it cost
	@$(BIN)/python examples/fashion/demo.py

.PHONY: test
test: lint docs ## every check: lint, types, layers, docs, then the tests
	$(call heading,pytest)
	@$(BIN)/python -m pytest

.PHONY: lint
lint: $(DEVELOPMENT) ## style, types and the layers
	$(call heading,ruff check)
	@$(BIN)/ruff check .
	$(call heading,ruff format)
	@$(BIN)/ruff format --check .
	$(call heading,mypy)
	@$(BIN)/mypy
	$(call heading,import-linter)
	@$(BIN)/lint-imports --no-logo

.PHONY: docs
docs: $(DEVELOPMENT) ## build the documentation into docs/_build/html, warnings being errors
	$(call heading,sphinx)
	@$(BIN)/sphinx-build -q -W --keep-going -E -b html -d docs/_build/doctrees docs docs/_build/html
	@echo 'docs/_build/html/index.html'

.PHONY: release-check
release-check: | $(BIN)/python ## build the wheel, install it in a clean environment and use it there
	@$(BIN)/python -m tools.release_check

.PHONY: reference
reference: $(DEVELOPMENT) ## write the generated pages of the documentation again
	@$(BIN)/python -m tools.cli_reference
	@$(BIN)/python -m tools.forms_page
	@$(BIN)/python -m tools.architecture_page

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
	@$(PIP) install --quiet --constraint '$(CONSTRAINTS)' --editable .
	@touch $@

$(DEVELOPMENT): $(INSTALLED_FROM) | $(BIN)/python
	$(call heading,installing the package with its development and documentation tools)
	@$(PIP) install --quiet --constraint '$(CONSTRAINTS)' --editable '.[dev,docs,loops]'
	@touch $(RUNTIME) $@
