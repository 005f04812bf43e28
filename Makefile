# make book | make pixels | make test | make lab | make faults      each sets itself up in .venv first (make install)
# make plan      forecasts a profile's jobs, hours, disk and memory before anything runs
# make slides    writes the workshop's slides, with the figures of a finished run, as one HTML file
# make bundle    writes wheels, project and models into one file, for a room without network
# make lock      makes requirements.lock from constraints.txt again; needs uv (pip install uv) and PyTorch's CPU wheels
#   PROFILE=workshop   parameters, from profiles/
#   DATA=              folder of your own data set; empty = procedural surfaces; of make pixels also a folder of
#                      several categories, such as MVTec AD, which then has one table
#   CORES=             CPU cores to use
#   GPUS=              of make plan: GPUs to use; empty = all
#   SHARDS=1           of make book, pixels and plan: jobs that each pool of a diffusion model is cut into
#   PROCESSES=1        of make book, pixels and plan: processes of each training of a diffusion model, each with a GPU
#   SEED=0 MINUTES=25 of make faults, which looks for faults and can be resumed
#   PYTHON=python3     Python 3.11 or newer, to make .venv with
#   PIP_OPTIONS=       further options for pip, such as --index-url for a CPU-only PyTorch
#   PINS=requirements.lock   of make bundle: exact versions; constraints.txt on other systems than the lock's
#   LOCK_OPTIONS=--torch-backend cpu   where uv finds PyTorch
PROFILE ?= workshop
DATA ?=
GPUS ?=
SHARDS ?= 1
PROCESSES ?= 1
CORES ?= $(shell getconf _NPROCESSORS_ONLN)
SEED ?= 0
MINUTES ?= 25
PYTHON ?= python3
PIP_OPTIONS ?=
PINS ?= requirements.lock
LOCK_OPTIONS ?= --torch-backend cpu

# make ignores a mistyped variable, such as PROFIL=smoke, and would start another run than the one meant.
KNOWN := PROFILE DATA GPUS SHARDS PROCESSES CORES SEED MINUTES PYTHON PIP_OPTIONS PINS LOCK_OPTIONS
GIVEN := $(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(name)))
ifneq ($(filter-out $(KNOWN) MAKEFLAGS SHELL,$(GIVEN)),)
$(error unknown: $(filter-out $(KNOWN),$(GIVEN)); known are $(KNOWN))
endif

# Python compiles a module when it first imports it, and keeps that; pip would compile all 20,000 beforehand.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
CONFIG = profile="$(PROFILE)" data="$(DATA)" shards="$(SHARDS)" processes="$(PROCESSES)"
INSTALLED := .venv/.installed

.PHONY: book pixels plan test lab faults install lock slides bundle clean
book: $(INSTALLED)
	$(BIN)/python -m snakemake --cores $(CORES) --config $(CONFIG)

pixels: $(INSTALLED)
	$(BIN)/python -m snakemake pixels --cores $(CORES) --config $(CONFIG)

plan: $(INSTALLED)
	$(BIN)/python scripts/plan.py "$(PROFILE)" --data "$(DATA)" --cores $(CORES) --gpus "$(GPUS)" \
		--shards "$(SHARDS)" --processes "$(PROCESSES)"

test: $(INSTALLED)
	$(BIN)/python -m pytest -n $(CORES) --maxprocesses 8 --dist worksteal -m "not browser and not slow"

lab: $(INSTALLED)
	$(BIN)/python -m jupyter lab --LabApp.default_url=/lab/tree/notebooks/01_data_prep.ipynb

faults: $(INSTALLED)
	PYTHONPATH=tests $(BIN)/python scripts/faults.py runs/faults --seed $(SEED) --minutes $(MINUTES)

slides: $(INSTALLED)
	$(BIN)/python scripts/write_slides.py "$(PROFILE)" --data "$(DATA)"

bundle: $(INSTALLED)
	$(BIN)/python scripts/write_bundle.py --pins "$(PINS)" build/defaug.zip -- $(PIP_OPTIONS)

lock:
	uv pip compile constraints.txt --no-deps --generate-hashes --no-annotate --custom-compile-command "make lock" \
		--python-version 3.11.7 $(LOCK_OPTIONS) --output-file requirements.lock

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11')"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile $(PIP_OPTIONS) --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --no-compile $(PIP_OPTIONS) --constraint constraints.txt --editable ".[notebooks,dev]"
	touch $@

clean:
	rm -rf .venv runs
