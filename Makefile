# Each target sets up all that it needs in .venv; `make clean` forgets it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test parity faults check clean

demo: $(VENV)/.demo
	$(BIN)/python -m jobs.demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest

parity: $(VENV)/.dev
	$(BIN)/python -m pytest tests/parity tests/encoder tests/test_documents.py -m ""

faults: $(VENV)/.dev
	$(BIN)/python -m pytest tests/faults tests/jobs -m ""

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m security.audit

clean:
	rm -rf $(VENV) demo

$(VENV)/.demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e ".[samples]"
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e ".[dev]"
	touch $@ $(VENV)/.demo
