# The two commands of a newcomer are `make up` and `make test`; both make .venv first.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
ARGS ?=
SECONDS ?= 60
# Most of the time the slow tests wait for something, so several files run side by side: in their order, by which files
# with few and long tests come early.
SPREAD ?= -n 3 --dist loadfile --no-loadscope-reorder

COMPILED := build/compiled
# Tests that start a whole gateway: others look into it, and set what compiled classes do not let be set.
SHOWING := tests/integration/test_http.py tests/integration/test_tunnel.py tests/faults/test_malformed.py \
	tests/faults/test_hostile_engines.py tests/faults/test_overload.py tests/faults/test_deaths.py

.PHONY: help install up down lab lab-down test test-postgresql test-long test-compiled test-clients oidc vllm test-vllm \
	webui test-webui api-page permissions-page fuzz check bench bench-gateways compiled clean

help:
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 18

install: $(INSTALLED) ## make .venv with all that development needs

$(INSTALLED): pyproject.toml requirements/dev.lock requirements/demo.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || deploy/install-venv
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements/demo.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	$(BIN)/python -m compileall -q src
	@touch $@

up: $(INSTALLED) ## start FIRST with the demonstration and wait until its model answers
	@$(BIN)/first up $(ARGS)

down: ## stop what `make up` started, engines included
	@if [ -x $(BIN)/first ]; then $(BIN)/first down $(ARGS); else echo "Nothing is installed, so nothing runs."; fi

lab: $(INSTALLED) ## two real Slurm clusters on this machine, and FIRST over both
	@deploy/install-slurm
	@$(BIN)/python deploy/lab.py up

lab-down: $(INSTALLED) ## stop what `make lab` started
	@$(BIN)/python deploy/lab.py down

oidc: $(INSTALLED) ## an OpenID provider for tests, in .cache/oidc
	@$(BIN)/python deploy/make_oidc.py $(ARGS)

test: $(INSTALLED) ## everything that this machine can test, some minutes
	@$(BIN)/python deploy/make_oidc.py --or-skip
	$(BIN)/pytest -m "not long" $(SPREAD) $(ARGS)

test-postgresql: $(INSTALLED) ## the tests that use a database, on PostgreSQL
	$(BIN)/pytest -m "not long" --database postgresql $(SPREAD) $(ARGS)

test-long: $(INSTALLED) ## what takes longer: chaos, repeated deaths
	$(BIN)/pytest -m long $(SPREAD) $(ARGS)

compiled: $(COMPILED)/made ## FIRST with the modules that requests pass through compiled, in build/compiled; needs cc

$(COMPILED)/made: $(INSTALLED) hatch_build.py $(shell find src -name '*.py')
	@rm -rf $(COMPILED)
	FIRST_COMPILE=1 $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps \
	  --target $(COMPILED) .
	@touch $@

test-compiled: $(COMPILED)/made ## tests of whole gateways, compiled
	PYTHONPATH=$(CURDIR)/$(COMPILED) $(BIN)/pytest -m "not long" $(SPREAD) $(SHOWING) $(ARGS)

test-clients: $(INSTALLED) ## the pages of docs/howto/clients, with the real libraries, which it installs
	@$(BIN)/python deploy/clients.py --or-skip
	$(BIN)/pytest tests/clients $(ARGS)

vllm: $(INSTALLED) ## vLLM for CPUs and two small models, in .cache/vllm
	@$(BIN)/python deploy/make_vllm.py $(ARGS)

test-vllm: $(INSTALLED) ## the API over real vLLM, which it installs; some minutes
	@$(BIN)/python deploy/make_vllm.py --or-skip
	$(BIN)/pytest tests/real_vllm $(ARGS)

webui: $(INSTALLED) ## Open WebUI, and what drives a browser, in .cache/webui
	@$(BIN)/python deploy/make_webui.py $(ARGS)

test-webui: $(INSTALLED) ## Open WebUI over FIRST in a real browser; optional, gigabytes
	@$(BIN)/python deploy/make_webui.py --or-skip
	$(BIN)/pytest tests/real_webui $(ARGS)

api-page: $(INSTALLED) ## write docs/reference/api.md anew
	PYTHONPATH=tests $(BIN)/python -m docs.api_page

permissions-page: $(INSTALLED) ## write docs/reference/permissions.md anew
	PYTHONPATH=tests $(BIN)/python -m docs.permissions_page

fuzz: $(INSTALLED) ## heads, bodies, streams and frames of all kinds, SECONDS of each
	PYTHONPATH=tests $(BIN)/python -m fuzz --seconds $(SECONDS)

check: $(INSTALLED) ## ruff, mypy --strict, the import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: $(INSTALLED) ## the figures of bench/README.md
	$(BIN)/python bench/decisions.py
	$(BIN)/python bench/vertical.py
	$(BIN)/python bench/tunnel.py
	$(BIN)/python bench/federation.py
	$(BIN)/python bench/translation.py
	$(BIN)/python bench/identity.py
	$(BIN)/python bench/limits.py
	$(BIN)/python bench/fairness.py
	$(BIN)/python bench/node_hours.py

bench-gateways: $(COMPILED)/made ## FIRST, compiled, beside nginx and vllm-router; ARGS=--quick for a glance
	PYTHONPATH=$(CURDIR)/$(COMPILED) $(BIN)/python bench/gateways.py $(ARGS)

clean: down ## remove .venv and all caches
	rm -rf .venv .cache bench/bin build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
