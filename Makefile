# `make demo` and `make test` are all a newcomer types; each sets up what it needs.

PYTHON ?= python3
CORES ?= 2
VENV := .venv
BIN := $(VENV)/bin
SNAKEMAKE := $(BIN)/snakemake

.PHONY: help setup demo demo-seeds need-root pets test bench gpu-plan lint format
.DEFAULT_GOAL := help

help:
	@echo "make demo        learn shapes with FT, MiB and MiB + AWT, and draw how they forget"
	@echo "make demo-seeds  the same over three seeds, with MiB's random start beside it"
	@echo "make pets        the same methods on real images: make pets ROOT=/data/VOC"
	@echo "make test        all tests"
	@echo "make bench       how fast it is, against the published way; on images of yours with ROOT=/data/VOC"
	@echo "make gpu-plan    experiments as commands, for a machine with a GPU and without Snakemake"
	@echo "make lint        formatting, lint and types of Python and of the workflow"
	@echo "make setup       only the environment, in $(VENV)"

# Made anew when the versions change; `touch` marks it finished.
$(VENV)/finished: constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 14) else "Python 3.11, 3.12 or 3.13 is needed, this is %d.%d: make PYTHON=python3.12 ..." % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[workflow,dev]'
	@touch $@

setup: $(VENV)/finished

demo: setup
	$(SNAKEMAKE) --configfile configs/demo.yaml --cores $(CORES) demo --set-threads train_base=$(CORES)
	@$(BIN)/python workflow_scripts/show_report.py results/demo/reports/demo

demo-seeds: setup
	$(SNAKEMAKE) --configfile configs/demo.yaml --cores $(CORES) demo_seeds
	@$(BIN)/python workflow_scripts/show_report.py results/demo/reports/demo_seeds

need-root:
	@test -n "$(ROOT)" || { echo "say where the VOC images are: make pets ROOT=/data/PascalVOC12"; exit 2; }

pets: need-root setup
	$(SNAKEMAKE) --configfile configs/pets.yaml --config 'datasets={pets: {root: "$(ROOT)"}}' --cores $(CORES) pets
	@$(BIN)/python workflow_scripts/show_report.py results/pets/reports/pets

# One process more than cores: the one with the tests on SLURM mostly waits.
test: setup
	$(BIN)/python -m pytest -n $$(($(CORES) + 1)) --dist worksteal

bench: setup
	$(BIN)/python -m benchmarks $(if $(ROOT),--root "$(ROOT)") --output results/benchmarks

# The experiments of configs/gpu.yaml as commands, for a machine with a GPU and without Snakemake.
gpu-plan: setup
	@test -n "$(VOC)" && test -n "$(CAMVID)" || { echo "say where images are: make gpu-plan VOC=/data/PascalVOC12 CAMVID=/data/CamVid"; exit 2; }
	$(BIN)/python benchmarks/without_snakemake.py plan --data "pets=$(VOC)" "camvid=$(CAMVID)" --output results/gpu_plan.json gpu_pets gpu_camvid

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile rules
	$(SNAKEMAKE) --lint

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile rules
