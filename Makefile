# Everything a developer runs. Each target sets up what it needs; nothing has to be installed by hand but
# Python (3.11 or later, with venv) and make. The provider itself also runs on 3.10: `make test-matrix`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Exactly the versions that were tested; `make constraints` renews the list.
CONSTRAINTS := dev/constraints.txt
FUZZ_SECONDS ?= 120
# More than there are cores, as most tests wait for a server.
TEST_PROCESSES ?= 4
PYTEST := $(BIN)/python -m pytest
PARALLEL := --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder --max-worker-restart 0
STAMP := $(VENV)/.installed

.PHONY: help install lint audit format test test-proofs test-matrix fuzz services test-stack demo bench sandbox docs constraints clean

help:  ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/'

install: $(STAMP)  ## Set up the development environment in .venv

$(STAMP): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit("To work on it needs Python 3.11: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) uv
# With bytecode: where Python may write none, each process of the tests would compile all of Airflow again.
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint $(CONSTRAINTS) --editable . --group dev
	touch $@

lint: audit  ## Check style, types, layers and known vulnerabilities
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

audit: $(STAMP)  ## Check the pinned versions for known vulnerabilities
	$(BIN)/python -m dev.audit

format: $(STAMP)  ## Format the code and mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: $(STAMP)  ## Run the tests, against a real Jobmon and a real Airflow; PYTEST_ARGS="…" selects
ifeq ($(strip $(PYTEST_ARGS)),)
	$(PYTEST) $(PARALLEL) --cov --cov-report=
	$(BIN)/coverage report --fail-under 95
	$(BIN)/coverage report --fail-under 100 --include '*/client/*'
else
	$(PYTEST) $(PYTEST_ARGS)
endif

test-proofs: $(STAMP)  ## Run the long tests: every fault for every call, long state machines, outages, speed
	$(PYTEST) $(PARALLEL) tests/proofs

test-matrix: $(STAMP)  ## Test with every supported Airflow and Python, for hours; CELLS="3.1-3.12-dated" selects
# Jobmon's environment is the same for all cells, and its versions are for this Python.
	$(BIN)/python -c "from dev.jobmon_sandbox import install; install()"
	$(BIN)/nox $(if $(CELLS),--session $(foreach cell,$(CELLS),"cell($(cell))"))

fuzz: $(STAMP)  ## Feed the parsers with what nobody would send, for FUZZ_SECONDS (120)
	$(BIN)/python -m tests.fuzz $(FUZZ_SECONDS)

services: $(STAMP)  ## Look for the services that test-stack needs
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint $(CONSTRAINTS) --group stack
	$(BIN)/python -m dev.services

test-stack: services  ## Test the production stack, for half an hour; needs PostgreSQL, MariaDB, Redis, sshd, Slurm
ifeq ($(strip $(PYTEST_ARGS)),)
# Slurm's tests wait most of the time, and need nothing of the others: they run beside them.
	@log=$$(mktemp); $(PYTEST) tests/stack/slurm >$$log 2>&1 & slurm=$$!; \
	trap 'kill $$slurm 2>/dev/null; rm -f $$log' EXIT; \
	$(PYTEST) tests/stack --ignore tests/stack/slurm; production=$$?; \
	wait $$slurm; on_slurm=$$?; cat $$log; exit $$((production + on_slurm))
else
	$(PYTEST) $(PYTEST_ARGS)
endif

demo: $(STAMP)  ## Fail a Jobmon workflow and let Airflow resume it; KEEP=1 leaves the UI up, HPC=1 does it on a Slurm
	$(BIN)/python -m dev.demo $(if $(KEEP),--keep) $(if $(HPC),--hpc)

bench: $(STAMP)  ## Measure speed and scale beside the peers; BENCH_ARGS="heartbeat" runs one part
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint $(CONSTRAINTS) --group bench
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

sandbox: $(STAMP)  ## Start a real Jobmon in the foreground
	$(BIN)/python -m dev.jobmon_sandbox

docs: $(STAMP)  ## Write what the docs take from the code
	$(BIN)/python -m dev.docs

constraints: $(STAMP)  ## Take the newest versions and pin them
	$(BIN)/uv pip compile --quiet --upgrade --python $(BIN)/python --no-header --no-annotate \
		--no-emit-index-url --no-emit-find-links --group dev --group bench --group stack pyproject.toml --output-file $(CONSTRAINTS)
	echo "uv==$$($(BIN)/uv --version | cut -d' ' -f2)" >> $(CONSTRAINTS)

clean:  ## Remove environments and caches
	rm -rf $(VENV) .venv-jobmon .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .coverage* .nox
