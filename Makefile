# Everything runs from here; `make help` says what there is. Needs Python 3.11 or later, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
FULL ?=
export PYTHONDONTWRITEBYTECODE := 1

.PHONY: help demo test coverage lint bench profile fuzz attacks golden mutants run bare lock tables

help: ## what there is
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 18

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "FHIRShield needs Python 3.11 or later")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(READY)

demo: $(READY) ## the walk through one record seen by six callers; stays up (SMOKE=1: exits)
	$(BIN)/fhirshield demo $(if $(SMOKE),--smoke)

test: $(READY) lint ## all tests (FULL=1: every count in full)
	FHIRSHIELD_FULL=$(FULL) $(BIN)/python -m pytest -q --durations=20 $(ARGS)

coverage: $(READY) ## the same tests, in samples, and which lines they reach; twice as slow
	$(BIN)/python -m pytest -q --cov --cov-report=term:skip-covered $(ARGS)

lint: $(READY) ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: $(READY) ## ratios beside nginx and a bare pass-through, in one run
	$(BIN)/python -m tests.bench $(ARGS)

profile: $(READY) ## where the shield's CPU goes
	$(BIN)/python -m tests.bench --profile $(ARGS)

fuzz: $(READY) ## the fuzzer on each parser for SECONDS=600
	for parser in target token body selector; do $(BIN)/python -m tests.attacks.fuzz $$parser $(or $(SECONDS),600) || exit 1; done

attacks: $(READY) ## what is tried against the shield, and a table of how it ends (FULL=1: all of it)
	FHIRSHIELD_FULL=$(FULL) $(BIN)/python -m pytest -q tests/attacks tests/authenticate/test_hostile.py tests/audit tests/watch

golden: $(READY) ## write the before/after Bundles of every pack and role anew; read the diff
	FHIRSHIELD_GOLDEN=write $(BIN)/python -m pytest -q tests/golden

mutants: $(READY) ## delete each part of each rule pack, and each guard of the shield, in turn; the tests must notice
	$(BIN)/fhirshield test rules --mutate
	$(BIN)/python -m tests.mutants $(ARGS)

run: $(READY) ## serve with SETTINGS=fhirshield.yaml
	$(BIN)/fhirshield serve $(or $(SETTINGS),fhirshield.yaml)

bare: $(READY) ## the tests with nothing but Python on the PATH; says what is skipped
	env -i HOME="$(HOME)" PATH="$(CURDIR)/$(BIN)" $(BIN)/python -m pytest -q -rs

lock: ## the lock file anew (needs uv)
	uv pip compile --quiet --generate-hashes --no-emit-index-url --no-header --no-annotate --python-version 3.11 --universal \
	  pyproject.toml --group dev --output-file requirements.lock

tables: $(READY) ## the R4 tables anew from the published definitions (needs npm)
	$(BIN)/python tools/tables.py "$$(tools/fetch-definitions)"
