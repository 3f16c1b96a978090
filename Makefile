# Everything a fresh machine needs: `make demo`, `make test`, `make lint`. Set VENV to use another environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Installed if VENV has no torch. On Linux x86-64 this is a CUDA build; install the CPU build beforehand, as pytorch.org shows.
TORCH ?= torch==2.13.0
STAMP := $(VENV)/.installed
# Test processes; each runs PyTorch with one thread.
WORKERS ?= auto

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-tss demo-ncl test lint docs native sanitize resources counts release-check gpu clean

help:
	@echo "make demo   set up, then learn seven generated tasks with TSS and without, and write a report (minutes)"
	@echo "make test   set up, then run the test suite"
	@echo "make lint   set up, then ruff and pyright"
	@echo "make docs   set up, then build the documentation in build/docs; warnings are errors"
	@echo "make native compile csrc again, after a change there; only what changed"
	@echo "make sanitize  the tests of csrc with address and undefined-behaviour sanitizers"
	@echo "make resources  compile every kernel without a GPU; writes what it takes to tests/kernels/resources"
	@echo "make counts  count what kernels execute on the CPU (valgrind); writes it to tests/kernels/resources"
	@echo "make release-check  once a release: kernels of odd shapes, and for GPUs without a table, compile, fit and do not spill"
	@echo "make gpu    on a machine with an NVIDIA GPU: tests, memory checks, measurements (scripts/gpu.sh; sets nothing up)"
	@echo "make clean  remove the environment and demo runs"

setup: $(STAMP)

$(STAMP): pyproject.toml setup.py $(wildcard csrc/*/*.py csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu csrc/*/*.cuh)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, $(PYTHON) is older: run make PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || { echo "set-up 1 of 4: an environment in $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@$(BIN)/python -c 'import torch' 2>/dev/null || { echo "set-up 2 of 4: $(TORCH), some hundred megabytes"; \
		$(BIN)/python -m pip install --disable-pip-version-check "$(TORCH)"; }
	@echo "set-up 3 of 4: tss and the packages that it needs"
	@TSS_KERNELS_BUILD=off $(BIN)/python -m pip install --disable-pip-version-check -e '.[dev]'
	@echo "set-up 4 of 4: csrc, under a minute for C++ on two idle cores, minutes more for CUDA where there is nvcc"
	@$(BIN)/python setup.py --quiet build_ext --inplace
	@touch $(STAMP)

# Both runs at once, with one thread each: on two cores faster than one after the other with two.
demo: setup
	rm -rf runs/demo
	@$(MAKE) --no-print-directory -j2 demo-tss demo-ncl
	$(BIN)/tss report runs/demo/tss runs/demo/ncl --out runs/demo

demo-tss:
	OMP_NUM_THREADS=1 $(BIN)/tss run demo --method tss --out runs/demo/tss

demo-ncl:
	@OMP_NUM_THREADS=1 $(BIN)/tss run demo --method ncl --out runs/demo/ncl --quiet

test: setup
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal tests

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: setup
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs
	@echo "build/docs/index.html"

native: setup
	$(BIN)/python setup.py --quiet build_ext --inplace

sanitize: setup
	scripts/sanitize.sh $(BIN)/python

resources: setup
	$(BIN)/python -m tests.kernels.inspectors.resources --write tests/kernels/resources
	$(BIN)/python -m tests.kernels.inspectors.cuda_resources --write tests/kernels/resources
	$(BIN)/python -m tests.kernels.inspectors.cuda_loops --write tests/kernels/resources

counts: setup
	$(BIN)/python -m tests.kernels.inspectors.instruction_counts --write tests/kernels/resources

release-check: setup
	$(BIN)/python -m tests.kernels.inspectors.release_check

gpu:
	scripts/gpu.sh

clean:
	rm -rf $(VENV) runs/demo
