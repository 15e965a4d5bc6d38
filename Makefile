# Each target sets up all that it needs in .venv, and `bench` in .venv-peers; `make clean` forgets it.
PYTHON ?= python3
VENV := .venv
PEERS := .venv-peers
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test parity faults bench check clean

demo: $(VENV)/.demo
	$(BIN)/python -m jobs.demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest

parity: $(VENV)/.dev
	$(BIN)/python -m pytest tests/parity tests/encoder tests/test_documents.py -m ""

faults: $(VENV)/.dev
	$(BIN)/python -m pytest tests/faults tests/jobs -m ""
	$(BIN)/python -m pytest tests/pipeline -m whole

# Hours, on a machine that does nothing else: benchmarks/README.md.
bench: $(VENV)/.bench $(PEERS)/.ready
	corpus=$$($(BIN)/python -m benchmarks.corpus) \
		&& $(BIN)/python -m benchmarks.jpeg_decoders $$corpus \
		&& $(BIN)/python -m benchmarks.decode_fast $$corpus \
		&& $(PEERS)/bin/python -m benchmarks.preprocess $$corpus
	$(PEERS)/bin/python -m benchmarks.video
	$(BIN)/python -m benchmarks.encoder
	$(BIN)/python -m benchmarks.scale
	$(BIN)/python -m benchmarks.driver
	$(BIN)/python -m benchmarks.packs
	$(BIN)/python -m benchmarks.decoder_process
	$(BIN)/python -m benchmarks.safety
	$(BIN)/python -m benchmarks.tune_peers
	$(BIN)/python -m benchmarks.end_to_end

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m security.audit

clean:
	rm -rf $(VENV) $(PEERS) demo benchmarks/.cache

$(VENV)/.demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e ".[samples]"
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e ".[dev]"
	touch $@ $(VENV)/.demo

$(VENV)/.bench: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e ".[bench]"
	touch $@

$(PEERS)/.ready: benchmarks/peers/requirements.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	# It would bring a torch of its own; benchmarks/peers/torchvision_shim.py says what goes without.
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps torchvision==0.28.0
	touch $@
