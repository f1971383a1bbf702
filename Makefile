# The commands of a checkout. All of them work as an ordinary user, without a compiler, a GPU or an account.
#
#   make demo       make the environment if need be, run the built-in lineage, print its table and report
#   make test       the same environment, the whole test suite (make test-fast: without the slow ones)
#   make check      format, lint, types, import directions
#   make env        .venv with the locked packages
#   make clean      remove .venv and caches (runs/ stays)

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

VENV := .venv
BIN := $(VENV)/bin
LOCKS := requirements/cpu.lock requirements/dev.lock
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	"$$p" -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo "$$p" && break; done)
PIP := PIP_REQUIRE_VIRTUALENV=1 PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install -qq --only-binary :all:
# Named after the content of the locks: a change of branch installs anew only when they differ.
STAMP := $(VENV)/.installed-$(shell cat $(LOCKS) pyproject.toml | sha256sum | cut -c1-16)

.PHONY: env demo test test-fast check clean

env: $(STAMP)

$(STAMP):
	@test -n "$(PYTHON)" || { echo "octo: error: no Python 3.11 or newer found; install one or say make PYTHON=..." >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "octo: error: $(PYTHON) cannot make a virtual environment; on Debian install python3-venv" >&2; exit 2; }
	@echo "installing into $(VENV) (about 2 GB, once)"
	@$(PIP) --constraint requirements/cpu.lock torch==$$(sed -n 's/^torch==//p' requirements/cpu.lock)
	@$(PIP) --no-deps $(foreach lock,$(LOCKS),--requirement $(lock))
	@$(PIP) --no-deps --no-build-isolation --editable .
	@rm -f $(VENV)/.installed-*
	@touch $@

demo: env
	@$(BIN)/octo demo

test: env
	@$(BIN)/python -m pytest

test-fast: env
	@$(BIN)/python -m pytest -m "not slow"

check: env
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy octo_megatron
	@$(BIN)/python -m pytest tests/unit/test_imports.py

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
