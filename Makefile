# Each target makes what it needs: .venv, pinned by constraints.txt. PYTHON is any Python 3.10 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help

LOWEST := .venv-lowest
DOCS := .venv-docs
export DRILL_MINUTES ?= 5
.PHONY: help demo test test-lowest drill lint bench docs clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed; set PYTHON=python3.x"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt "torch==2.13.0"
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[test,lint]"
	@touch $@

demo: $(STAMP)  ## train handwritten digits dense and 90 % sparse, with a table, a picture and a report page (under 90 s)
	$(BIN)/python examples/digits.py

test: $(STAMP)  ## run every test and docstring example
	$(BIN)/python -m pytest -n 2

test-lowest:  ## run a part of the suite with the lowest torch and Ignite of pyproject.toml (downloads 2.7 GB)
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/pip install --quiet --no-cache-dir "torch==2.4.0" "numpy<2" "pytorch-ignite==0.5.0.post2" pytest hypothesis
	PYTHONPATH=. $(LOWEST)/bin/python -m pytest -o addopts="" -q -p no:cacheprovider \
		tests/laws/test_state.py tests/laws/test_counts.py tests/handlers/test_in_a_loop.py tests/evidence/test_sources.py

drill: $(STAMP)  ## faults drawn by seeds for DRILL_MINUTES=5: kills, hostile input, ranks, full disks, Ctrl-C; exit code 1 if one is found
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.drill

lint: $(STAMP)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)  ## speed and memory as a table of ratios
	$(BIN)/python benchmarks/run.py

$(DOCS)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt "torch==2.13.0"
	$(DOCS)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[docs,tensorboard,report,cli]"
	@touch $@

docs: $(DOCS)/.installed  ## build the site in docs/_build/html; without a network too, once installed
	$(DOCS)/bin/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

clean:  ## remove .venv and everything generated
	rm -rf $(VENV) $(LOWEST) $(DOCS) docs/_build docs/api docs/tutorials build dist *.egg-info runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
