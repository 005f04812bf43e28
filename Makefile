# make book | make pixels | make test | make lab | make faults      each sets itself up in .venv first (make install)
#   PROFILE=workshop   parameters, from profiles/
#   DATA=              folder of your own data set; empty = procedural surfaces
#   CORES=             processor cores to use
#   SEED=0 MINUTES=15 of make faults, which looks for faults and goes on where it stopped
#   PYTHON=python3     Python 3.11 or newer, to make .venv with
#   PIP_OPTIONS=       further options for pip, such as --index-url for a CPU-only PyTorch
PROFILE ?= workshop
DATA ?=
CORES ?= $(shell getconf _NPROCESSORS_ONLN)
SEED ?= 0
MINUTES ?= 15
PYTHON ?= python3
PIP_OPTIONS ?=

# Python compiles a module when it first imports it, and keeps that; pip would compile all 20,000 beforehand.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: book pixels test lab faults install clean
book: $(INSTALLED)
	$(BIN)/python -m snakemake --cores $(CORES) --config profile="$(PROFILE)" data="$(DATA)"

pixels: $(INSTALLED)
	$(BIN)/python -m snakemake pixel_level --cores $(CORES) --config profile="$(PROFILE)" data="$(DATA)"

test: $(INSTALLED)
	$(BIN)/python -m pytest -n $(CORES) --maxprocesses 8 --dist worksteal -m "not book and not campaign"

lab: $(INSTALLED)
	$(BIN)/python -m jupyter lab --LabApp.default_url=/lab/tree/notebooks/01_data_prep.ipynb

faults: $(INSTALLED)
	PYTHONPATH=tests $(BIN)/python scripts/faults.py runs/faults --seed $(SEED) --minutes $(MINUTES)

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11')"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile $(PIP_OPTIONS) --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --no-compile $(PIP_OPTIONS) --constraint constraints.txt --editable ".[notebooks,dev]"
	touch $@

clean:
	rm -rf .venv runs
