# `make demo` and `make test` are the two commands: each sets up .venv first, and again when repeated.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
export MPLBACKEND := Agg

.venv/ready: pyproject.toml constraints.txt
	@echo 'Setting up .venv with torch and 80 packages: minutes the first time, and 2 GB of disk (torch for CUDA: 7 GB).'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[experiments,dev]'
	touch $@

.PHONY: help
help:  ## say what the targets do
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1 \t/'

.PHONY: test
test: .venv/ready  ## set up, then run the tests (a few minutes)
	@echo 'Running the tests in two processes: some minutes, longest where nothing is compiled yet.'
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: lint
lint: .venv/ready  ## set up, then lint, check the format and the types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# The heartbeats in one step of rk4: as accurate as with the document's dopri5, in a third of the time (docs/findings.md).
.PHONY: demo
demo: .venv/ready  ## set up, then train both twins on both problems and write two reports and the tour (under 5 minutes)
	rm -rf runs/demo
	$(BIN)/odenets run cubic --seeds 3 --out runs/demo/cubic
	$(BIN)/odenets run ecg --method rk4 --dt 1 --out runs/demo/ecg
	$(BIN)/odenets tour --out runs/demo/tour
	@echo
	@echo 'Open these in a browser:'
	@echo '  file://$(CURDIR)/runs/demo/cubic/report.html'
	@echo '  file://$(CURDIR)/runs/demo/ecg/report.html'
	@echo '  file://$(CURDIR)/runs/demo/tour/report.html'

.venv/bench: .venv/ready
	@echo 'Adding the peers: torchdiffeq, torchode, diffrax and jax.'
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	touch $@

.PHONY: bench
bench: .venv/bench  ## every peer on every work, scaling, memory, then the tables of the pages (about 25 minutes)
	$(BIN)/python benchmarks/bench.py run
	$(BIN)/python benchmarks/scale.py
	$(BIN)/python benchmarks/bench.py memory
	$(BIN)/python benchmarks/bench.py gradients
	$(BIN)/python benchmarks/bench.py multistep
	$(BIN)/python benchmarks/tables.py

.PHONY: test-slow
test-slow: .venv/ready  ## the long tests: everything compiled; the real records too where ODENETS_DATA names them
	$(BIN)/python -m pytest -m slow

.PHONY: test-cuda
test-cuda: .venv/ready  ## the tests on a GPU; needs a torch built for CUDA
	$(BIN)/python -m pytest -m cuda

TORCH ?= 2.14.1
OTHER := .venv-torch-$(TORCH)
# Without the counts of operations and the compiled engine, which are those of the pinned torch.
CORE := adjoint arguments block controller evaluation implicit interpolate per_sample replay runge_kutta shapes solve times

.PHONY: test-torch
test-torch:  ## the solver's tests with another torch, e.g. TORCH=2.9.1, in an environment of its own (up to 7 GB)
	$(PYTHON) -m venv $(OTHER)
	grep -v '^torch==' constraints.txt >$(OTHER)/constraints.txt
	$(OTHER)/bin/python -m pip install --disable-pip-version-check --constraint $(OTHER)/constraints.txt \
		torch==$(TORCH) numpy pandas pytest hypothesis torchdiffeq --editable .
	$(OTHER)/bin/python -m pytest $(CORE:%=tests/test_%.py)
