# Two commands: `make demo` and `make test`. Both set everything up first; set-up is skipped when it is already right.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The first of these that is Python 3.11 or 3.12; override with `make PYTHON=...`.
PYTHON ?= $(shell for p in python3.12 python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null && echo $$p && break; done)
RECIPE ?= configs/quickstart.yaml
# Where it is set, every process compiles torch and transformers anew, which takes longer than importing them.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test setup lint types unit clean

demo: setup
	$(BIN)/acorn run $(RECIPE)
	$(BIN)/acorn report $(RECIPE)

test: setup lint types unit

setup: $(STAMP)

# Written last, so a killed set-up is done again. --no-compile: 2.5 GB of sources are compiled when first imported.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "acorn needs Python 3.11 or 3.12; name one with make PYTHON=/path/to/python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: setup
	$(BIN)/mypy

# e2e is collected early and stays there (--no-loadscope-reorder): it takes longest.
# Two workers: most of a test's time is one process importing its library. One thread each: oversubscribed OpenMP is
# up to 40 times slower.
unit: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

clean:
	rm -rf $(VENV) .acorn build *.egg-info
