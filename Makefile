# What a newcomer needs: `make setup && make run`, then `make test`.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Made once; made again when what it was made from has changed.
STAMP := $(VENV)/.installed

.PHONY: setup run stop test test-unit fuzz lint bench

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

run: $(STAMP)
	$(BIN)/mixpeek-ray up

stop: $(STAMP)
	$(BIN)/mixpeek-ray down

test: test-unit
	$(BIN)/python -m pytest tests/integration

test-unit: $(STAMP)
	$(BIN)/python -m pytest -n 2 tests/unit tests/fuzz

# Mutated archives and weight files, then the archive reader led by its coverage: some 20 minutes.
fuzz: $(STAMP)
	FUZZ_CASES=10000 $(BIN)/python -m pytest -s tests/fuzz
	$(BIN)/python tests/fuzz/fuzz_reader.py -runs=100000

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python -m benchmarks
