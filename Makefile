# make book     build the book:  _build/html/index.html
# make test     run every test
# make deep     draw 10,000 examples or problems for each property instead of 50
# make check    check the built pages (links, alt texts, formulas, offline); needs Chromium
# make lint     style and types
# make bench    measure what a step costs, beside torch and other packages:  book/results/benchmarks/cost.json
# make clean    remove what was built; `rm -r .venv .venv-bench` removes the environments too

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
READY := $(VENV)/.installed
# The other packages stand apart: neither tests nor book can come to depend on them.
BENCH := .venv-bench

.PHONY: help book test deep check lint bench clean

# Hundreds of processes import the same files: they are compiled once, also where the environment forbids it.
export PYTHONDONTWRITEBYTECODE :=

# One thread a process: the tests run in parallel, and two layers of it are slower.
test deep: export OMP_NUM_THREADS ?= 1

help:
	@sed -n 's/^# //p;/^$$/q' Makefile

book: $(READY)
	@$(RUN)/jupyter-book build book --config _config.yml -n -W --keep-going -q
	@echo "The book: $(CURDIR)/_build/html/index.html"

test: $(READY)
	@$(RUN)/python -m pytest -q -n auto --evidence=_build/evidence.json

deep: $(READY)
	@FOP_HYPOTHESIS=deep $(RUN)/python -m pytest -q -n auto -m "not mutant" tests/theory

check: $(READY)
	@$(RUN)/python -m tests.book.check_html _build/html

lint: $(READY)
	@$(RUN)/ruff check . && $(RUN)/ruff format --check . && $(RUN)/mypy

bench: $(BENCH)/.installed
	@$(BENCH)/bin/python -m tests.benchmarks

clean:
	rm -rf _build

# The environment, made when it is missing and brought up to date when what it holds has changed.
$(READY): pyproject.toml constraints.txt $(wildcard fop_torch/*.c)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed, and $(PYTHON) is not that. Name one: make $(or $(MAKECMDGOALS),book) PYTHON=python3.12" >&2; \
	  exit 1; }
	@$(RUN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "Installing the pinned packages into $(VENV) ..."
	@PYTHONWARNINGS=ignore $(RUN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[book,test]'
	@touch $@

$(BENCH)/.installed: pyproject.toml constraints.txt $(wildcard fop_torch/*.c)
	@$(BENCH)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(BENCH)
	@echo "Installing the pinned packages into $(BENCH) ..."
	@PYTHONWARNINGS=ignore $(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@touch $@
