# One entry for every chore. `make` alone lists them.

.DEFAULT_GOAL := help
.PHONY: help run test check lint types floors fmt bench bench-report bench-peers chaos lock audit clean
MAKEFLAGS += --no-print-directory
.NOTPARALLEL:

PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3)
# T=path narrows `make test`; a narrowed run stays in one process so that its output is easy to read.
T ?=
# Three workers for the whole suite: many tests wait on real servers, and keep no core busy meanwhile.
# One file's tests stay together, so that the servers they share start once.
SPREAD = $(if $(T),,-n 3 --dist loadfile)

BIN := .venv/bin
# Not an upper-case PIP: the environment has variables of such names.
install := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input
locked  := $(install) --require-hashes --no-deps -r
# --system-certs: trust what pip trusts.
compile := $(BIN)/uv pip compile --quiet --system-certs --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url $(if $(UPGRADE),--upgrade)

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "  T=path narrows test: make test T=tests/domain; PYTHON=… picks another interpreter than $(PYTHON)"

# ---------------------------------------------------------------- use

run: .venv/.run ## serve on 127.0.0.1:3000 with an embedded server (PORT, HOST, SESSIONS_DATA_DIR)
	@exec $(BIN)/sessions-api dev

# B narrows or widens it: make bench B="--only scripts", B=--million; B=--help tells all.
bench: .venv/.dev ## measure; a table here and a JSON file
	@tools/install-debian-packages "wrk=wrk=the HTTP part of the benchmark"
	@exec $(BIN)/python -m bench $(B)

# Without B it measures nothing: it writes the tables and plots anew from bench/results/published.json.
# make bench-report B="--only followers,expiry,growth" measures these parts and publishes them first.
bench-report: .venv/.bench ## docs/performance.md from the published figures; B=… measures and publishes first
ifneq ($(B),)
	@tools/install-debian-packages "wrk=wrk=the HTTP part of the benchmark"
	@$(BIN)/python -m bench $(B) --publish
endif
	@exec $(BIN)/python -m bench.report

# Installs them under .peers/, once. B narrows it: make bench-peers B="--only ours,express"; B=--help tells all.
bench-peers: .venv/.dev ## the same work for us and for others, side by side (bench/peers/README.md)
	@tools/install-debian-packages "npm=npm=the peers that are written in JavaScript"
	@exec $(BIN)/python -m bench.peers $(B)

# C chooses: make chaos C="--seed 17", C="--seeds 1-20 --topology sentinel"; C=--help tells all.
chaos: .venv/.dev .venv/.debian ## random faults against real processes: 100 schedules, half an hour
	@exec $(BIN)/python -m tests.chaos $(C)

# ---------------------------------------------------------------- check

test: .venv/.dev .venv/.debian ## run all tests, or those of T=path
	@$(BIN)/python -m pytest $(SPREAD) $(T) || { code=$$?; \
	  if [ $$code = 5 ]; then echo "no test ran: nothing matches T=$(T)" >&2; fi; exit $$code; }

lint: .venv/.dev ## ruff: rules and format
	@$(BIN)/ruff check --quiet . && $(BIN)/ruff format --quiet --check .

types: .venv/.dev ## mypy, strict
	@$(BIN)/mypy

floors: .venv/.dev ## import-linter: each part knows only what is below it
	@$(BIN)/lint-imports --no-cache --no-logo

check: lint types floors test ## all that CI runs, in its order

fmt: .venv/.dev ## format, and fix what can be fixed
	@$(BIN)/ruff check --quiet --fix-only . ; $(BIN)/ruff format .

# ---------------------------------------------------------------- upkeep

lock: .venv/.dev ## write the requirements locks anew from pyproject.toml; pins stay where they fit, unless UPGRADE=1
	@$(compile) pyproject.toml -o requirements.lock
	@$(compile) --group build -o requirements-build.lock
	@$(compile) pyproject.toml --group dev -o requirements-dev.lock
	@$(compile) pyproject.toml --extra otel --constraint requirements-dev.lock -o requirements-otel.lock
	@$(compile) --group bench --constraint requirements-dev.lock -o requirements-bench.lock
	@echo "wrote $$(echo requirements*.lock)"

# Not of `check`: it asks a service elsewhere, whose answer changes overnight. Where that cannot be
# reached it says so in capitals, and checks nothing.
audit: .venv/.dev ## look up the locked packages among the known vulnerabilities
	@$(BIN)/python tools/audit

clean: ## remove what make made, but no session: the data folder stays
	rm -rf .venv .chaos .peers dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ---------------------------------------------------------------- set up, once

# The build tools come from their own lock and the package is built without isolation:
# nothing is installed here that no lock has a hash for.
.venv/.run: requirements.lock requirements-build.lock pyproject.toml tools/make-venv
	@tools/make-venv "$(PYTHON)"
	@echo "· installing the service's packages (once; half a minute on a slow line)"
	@$(locked) requirements-build.lock -r requirements.lock
	@$(install) --no-deps --no-build-isolation --editable .
	@touch $@

.venv/.dev: .venv/.run requirements-dev.lock
	@echo "· installing the packages for tests and checks (once; a minute or so)"
	@$(locked) requirements-dev.lock
	@touch $@

.venv/.bench: .venv/.dev requirements-bench.lock
	@echo "· installing the packages for plots (once)"
	@$(locked) requirements-bench.lock
	@touch $@

.venv/.debian: .venv/.run tools/install-debian-packages
	@tools/install-debian-packages \
	  "chromium=chromium=the chat page's test in a real browser" \
	  "redis-server=redis-server=the storage tests on Debian's Redis" \
	  "wrk=wrk=the benchmark's HTTP part" \
	  "faketime=faketime=the test of a replica whose clock is an hour wrong" \
	  "haproxy=haproxy=the tests of the deployed balancer" \
	  "nginx=nginx=the tests of the other balancer" \
	  "prometheus=prometheus=the tests of alerts and of the dashboard" \
	  "promtool=prometheus=the unit tests of alerts" \
	  "curl=curl=the balancers' test by HTTP/2"
	@touch $@
