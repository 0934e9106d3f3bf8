# `make` lists what there is. Nothing here needs more than make, a shell and a Python 3.11 to 3.13.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && { echo $$p; break; }; done)
VENV ?= .venv
# torch goes first and pinned: the packages after it must not pull another build of it.
TORCH ?= torch==2.13.0
PYTEST_ARGS ?=
MIN_FREE_MB := 3000
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.PHONY: help setup up test chaos corpus load check clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.setup ## make .venv with the m3esr command

up: setup ## start everything on this machine and upscale a sample
	@exec $(BIN)/m3esr up

test: $(VENV)/.dev ## pass all tests (no network once installed, no GPU)
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

chaos: $(VENV)/.dev ## kill, stop and poison workers and Redis under load, at full length (about 15 minutes)
	@CHAOS_LEASE_SECONDS=15 CHAOS_STALL_SECONDS=15 CHAOS_AWAY_SECONDS=60 CHAOS_JOBS=200 CHAOS_FAULTS=51 $(BIN)/python -m pytest -s tests/chaos

corpus: $(VENV)/.dev ## send some hundred hostile and odd files through the API, and tell the figures
	@CORPUS=full $(BIN)/python -m pytest -s tests/corpus

load: $(VENV)/.dev ## measure polls, uploads, a long line, overhead and memory, at full length (about 15 minutes; needs wrk)
	@LOAD=full $(BIN)/python -m pytest -s tests/load

check: $(VENV)/.dev ## formatting, lint, types, house rules
	@$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy && $(BIN)/python -m pytest -q tests/policy

clean: ## remove .venv and caches (keeps var/ and out/)
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

# What pip says goes to a log; a person gets the line that matters.
define install
	@echo "installing $(2) ..."; $(PIP) $(1) >$(VENV)/install.log 2>&1 || { \
	if grep -q 'No space left' $(VENV)/install.log; then echo "make: the disk is full: free some space and run make again" >&2; \
	else tail -n 3 $(VENV)/install.log >&2; echo "make: could not install $(2); all of pip's words: $(VENV)/install.log" >&2; fi; exit 1; }
endef

$(VENV)/.python:
	@if [ -z "$(PYTHON)" ]; then echo "make: no Python 3.11, 3.12 or 3.13 found; install one, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; fi
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null || { \
	echo "make: $(PYTHON) is not a Python 3.11, 3.12 or 3.13; name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	echo "make: $(PYTHON) has no venv module; on Debian: apt-get install $$($(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')" >&2; exit 1; }
	@free=$$(df -Pm . | awk 'NR == 2 {print $$4}'); if [ "$$free" -lt $(MIN_FREE_MB) ]; then \
	echo "make: only $$free MB free here, about $(MIN_FREE_MB) MB are needed" >&2; exit 1; fi
	@$(PYTHON) -m venv $(VENV) || { echo "make: $(PYTHON) could not make $(VENV)" >&2; exit 1; }
	@touch $@

$(VENV)/.torch: | $(VENV)/.python
	$(call install,'$(TORCH)',torch (the largest part; once))
	@touch $@

$(VENV)/.setup: pyproject.toml | $(VENV)/.torch
	$(call install,-e '.[service$(,)worker$(,)embedded]',m3esr and what it needs)
	@touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.setup
	$(call install,-e '.[service$(,)worker$(,)embedded$(,)dev]',the test tools)
	@touch $@

, := ,
