# make index [SRC=photos] [ROOT=where]: a published similarity index of a folder of photos.
# make bench: the speed of embedding, beside its peers.
# make test: everything that is checked on every commit, but for clusters and stores.
# make test-engines [ENGINES="engines and not slow"]: real Flink and Spark clusters and servers of S3, GCS and Azure.
SRC ?= examples/photos
ROOT ?= build/index
PYTHON ?= python3
ENGINES ?= engines

VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
INSTALL := $(UV) pip install --quiet --compile-bytecode --python $(BIN)/python --constraint requirements.txt

# make docs: the pages that are written from the code.
.PHONY: docs index test test-engines bench pins clean

index: $(VENV)/.installed-batch
	@$(BIN)/sif-batch run "$(SRC)" "$(ROOT)"

test: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest --numprocesses auto --dist loadfile -m "not slow and not engines and not gpu"

# What they need is fetched once, into SIF_ENGINES_CACHE (~/.cache/sif-batch-engines); what cannot be had is skipped.
test-engines: $(VENV)/.installed-test
	$(BIN)/python -m scripts.engines.fetch
	$(BIN)/pytest --numprocesses 2 --dist loadfile -m "$(ENGINES)" -rs --durations 15

# Embedding beside its peers, small; without options, `python -m benchmarks.embed` runs it in full.
bench: $(VENV)/.installed-test
	$(BIN)/python -m benchmarks.embed --number 200 --rounds 1

# uv resolves and installs this stack many times faster than pip.
$(UV): requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	@touch $(UV)

$(VENV)/.installed-batch: $(UV) setup.py requirements.txt
	$(INSTALL) --editable '.[batch,page]'
	@touch $@

$(VENV)/.installed-test: $(UV) setup.py requirements.txt
	$(INSTALL) --editable '.[batch,torch,timm,test]'
	@touch $@ $(VENV)/.installed-batch

# The pages that are written from the code.
docs: $(VENV)/.installed-test
	$(BIN)/python -m scripts.make_reference
	$(BIN)/python -m scripts.rooms

# Choose the versions in requirements.txt anew.
pins: $(UV)
	$(UV) pip compile --quiet --universal --no-annotate --no-header --upgrade --python-version 3.11 --all-extras \
		setup.py --output-file requirements.txt

clean:
	rm -rf $(VENV) build
