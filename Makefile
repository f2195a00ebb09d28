# Prunella's shell: every target sets up what it needs from nothing and is quick when that is there.
# `make help` lists the targets. Only `make system` writes outside this folder.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := setup
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
BIN := .venv/bin
# Debian packages: a browser for the tests that look at pages, an engine and a builder for containers, a database server, and
# Ceph's object store.
# With `postgresql` Debian starts a cluster of its own, on loopback; no test uses it.
SYSTEM_PACKAGES := chromium chromium-driver fonts-dejavu-core podman runc mmdebstrap postgresql radosgw ceph-mon ceph-osd
# As what the stages of a demonstration run: processes (local), or containers (container; after `make images`).
LAUNCH ?= local
# A file of settings for `make up`, such as the prunella.env that `make stack` writes.
ENV ?=
# Where `make up` works: the demonstration's folder, once there is one, unless a file says where the ledger lies.
DIR ?= $(if $(ENV),var/up,$(if $(wildcard var/demo/root),var/demo,var/up))
# What an environment was made from, and where: another lock or a moved folder makes it anew.
fingerprint = $(shell { pwd; cat requirements/$(1).lock pyproject.toml; } | sha256sum | cut -c1-16)
READY := .venv/.ready-$(call fingerprint,dev)
# Airflow's side as it is deployed: without torch, kfp and the full mlflow. With what its own tests need from dev.lock.
ORCHESTRATOR := .venv-orchestrator
ORCHESTRATOR_READY := $(ORCHESTRATOR)/.ready-$(call fingerprint,orchestrator)
ORCHESTRATOR_TESTS := pytest pytest-timeout iniconfig pluggy editables hatchling pathspec trove-classifiers tomlkit
# The most that each may take, in seconds; pytest is interrupted, so that it still prints what it has.
TEST_LIMIT_S := 1500
TEST_FULL_LIMIT_S := 4500
# Tests that run at a time: each waits for single processes much of its time. Whole files go to one worker, because their tests
# share what is costly to start.
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest --durations=15 --ignore=tests/orchestrator -n $(WORKERS) --dist loadfile --no-loadscope-reorder
ORCHESTRATOR_PYTEST := $(ORCHESTRATOR)/bin/python -m pytest -q tests/orchestrator
PIP_OPTIONS := --disable-pip-version-check --no-input -qq --no-deps

##@ Everyday

.PHONY: setup
setup: ## Make .venv from requirements/dev.lock, with the command at .venv/bin/prunella (plain `make` does this)
	@SECONDS=0; $(MAKE) --silent $(READY); echo "set-up took $$SECONDS s"

.PHONY: demo
demo: setup ## Watch a small model train under a real Airflow, break three times and be healed; ends in var/demo/report.html
	@SECONDS=0; PRUNELLA_LAUNCH=$(LAUNCH) $(BIN)/prunella demo --dir var/demo; echo "demo took $$SECONDS s"

.PHONY: up
up: setup ## Keep the pages of Airflow and MLflow on; prints their addresses and how to sign in
	@$(if $(ENV),set -a; . "$(abspath $(ENV))"; set +a;) PRUNELLA_LAUNCH=$(LAUNCH) $(BIN)/prunella up --dir $(DIR)

.PHONY: stack
stack: setup ## Run PostgreSQL, S3, MLflow and Airflow in containers, as prunella.env says; written the first time
	@$(BIN)/python containers/stack.py $(ARGS)

.PHONY: images
images: setup ## Build the images of containers/ with docker or podman (ARGS="--help" says more)
	@SECONDS=0; $(BIN)/python containers/images.py $(ARGS); echo "images took $$SECONDS s"

.PHONY: orchestrator
orchestrator: setup ## Make .venv-orchestrator: Airflow and our operators without torch, kfp and the full mlflow
	@SECONDS=0; $(MAKE) --silent $(ORCHESTRATOR_READY); echo "set-up of Airflow's own environment took $$SECONDS s"

.PHONY: test
test: setup orchestrator ## Every test but the slow ones (25 minutes at most)
	@$(ORCHESTRATOR_PYTEST)
	@timeout --foreground --signal=INT --kill-after=60 $(TEST_LIMIT_S) $(PYTEST) -m "not slow" tests

.PHONY: test-full
test-full: setup orchestrator images ## Every test; one skipped for want of a make target fails (75 minutes at most)
	@$(ORCHESTRATOR_PYTEST)
	@timeout --foreground --signal=INT --kill-after=60 $(TEST_FULL_LIMIT_S) $(PYTEST) --nothing-missing tests

.PHONY: check
check: setup ## Lint, formatting, types, direction of imports
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q tests/unit/test_imports.py

.PHONY: clean
clean: ## Remove the environment, caches and everything under var/ (experiments too)
	@rm -rf .venv $(ORCHESTRATOR) var build dist .mypy_cache .pytest_cache .ruff_cache
	@find components dags tests -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "removed .venv, var and caches"

##@ Now and then

.PHONY: system
system: ## Install the Debian packages that some tests need: a browser, PostgreSQL, Ceph (needs root; writes outside this folder)
	@if missing=$$(for name in $(SYSTEM_PACKAGES); do \
	    dpkg-query -W -f '$${Status}\n' $$name 2>/dev/null | grep -q '^install ok installed' || echo $$name; done); \
	  [ -z "$$missing" ]; then echo "system packages are there: $(SYSTEM_PACKAGES)"; exit 0; fi; \
	if [ "$$(id -u)" != 0 ]; then \
	  echo "make system: installing Debian packages needs root; run: sudo make system (missing:" $$missing")" >&2; exit 1; fi; \
	if ! command -v apt-get >/dev/null; then \
	  echo "make system: expected Debian's apt-get, found none; install these by hand:" $$missing >&2; exit 1; fi; \
	export DEBIAN_FRONTEND=noninteractive; \
	apt-get -q -o Acquire::Retries=3 update; \
	apt-get -q -o Acquire::Retries=3 install -y --no-install-recommends $(SYSTEM_PACKAGES)

.PHONY: lock
lock: setup ## Resolve pyproject.toml anew into requirements/*.lock (needs the package index; minutes)
	@$(BIN)/python requirements/lock.py

.PHONY: golden
golden: setup ## Make pipelines and manifests anew in tests/golden, after a component, an edge or a pod was changed on purpose
	@$(BIN)/prunella pipeline compile --output tests/golden
	@$(BIN)/prunella pipeline compile --output tests/golden --lightweight
	@$(BIN)/python tests/unit/launch/kubernetes/examples.py

.PHONY: help
help: ## This list
	@awk 'BEGIN { FS = ":.*## " } /^##@/ { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# The locks are complete, so nothing is resolved: pip only fetches and unpacks.
# $(1): folder of the environment; $(2): its lock; $(3): further pins.
define environment
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: expected Python 3.11 or newer, found $$($(PYTHON) --version 2>&1); run: make PYTHON=python3.11" >&2; exit 1; }
	@rm -f $(1)/.ready-*
	@if ! head -1 $(1)/bin/pip 2>/dev/null | grep -qF "$(CURDIR)/"; then \
	  echo "making $(1)"; \
	  $(PYTHON) -m venv --clear $(1) || { echo "make: no venv; on Debian run: apt-get install python3-venv" >&2; exit 1; }; fi
	@echo "installing $$(grep -c == requirements/$(2).lock) packages from requirements/$(2).lock (minutes the first time)"
	@$(1)/bin/python -m pip install $(PIP_OPTIONS) -r requirements/$(2).lock $(3)
	@$(1)/bin/python -m pip install $(PIP_OPTIONS) --no-build-isolation -e .
	@$(1)/bin/python -m pip check
	@touch $@
endef

$(READY):
	$(call environment,.venv,dev)

$(ORCHESTRATOR_READY):
	$(call environment,$(ORCHESTRATOR),orchestrator,$(foreach name,$(ORCHESTRATOR_TESTS),$(shell grep '^$(name)==' requirements/dev.lock)))
