# Everything runs in .venv, which `make venv` prepares from any python3 >= 3.11 that has venv. It is
# made anew for another one: `make test PYTHON=python3.13`.
PYTHON ?= python3
BIN := .venv/bin
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
STAMP := .venv/.stamp-$(VERSION)
DOCS_STAMP := .venv/.stamp-docs
OUT ?= tplimit-demo
SECONDS ?= 600
# What a new Python or JAX breaks first: imports, primitives, how programs are traced and read, exact
# limits. `make wheel` runs the README's code there.
CORE := $(patsubst %,tests/%.py,test_packaging test_layers rules/test_probing \
    program/test_tracing_traps transforms/test_refusals transforms/test_linear_exact)

.PHONY: help venv test test-slow fuzz matrix newest wheel lint format types demo demo-small reproduce bench docs pages clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

venv: $(STAMP)  ## prepare .venv: tplimit (editable), its tests, linters and the demo's data

# A new pyproject.toml means new dependencies. pip 25.1 is the first that reads dependency groups.
$(STAMP): pyproject.toml
	test -e $@ || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable ".[demo]" --group dev
	$(BIN)/python -m pip install --quiet --no-deps "neural-tangents>=0.6.5"
	@touch $@

test: $(STAMP)  ## fast tests and doctests
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: $(STAMP)  ## only the slow tests
	$(BIN)/python -m pytest -n 2 -m slow

matrix: $(STAMP)  ## fast tests on every Python found and on the oldest dependencies, a table
	$(BIN)/python .ci/matrix.py

newest: $(STAMP)  ## the core of the tests on the newest Python found
	$(BIN)/python .ci/matrix.py --newest $(CORE)

wheel: $(STAMP)  ## build the wheel and use it outside of the checkout, on the newest Python found
	bash .ci/wheel "$$($(BIN)/python .ci/matrix.py --which)"

lint: $(STAMP)  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)  ## let ruff repair what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP)  ## mypy
	$(BIN)/mypy

fuzz: $(STAMP)  ## random programs beside themselves at finite width, for SECONDS=600
	PYTHONPATH=tests $(BIN)/python -m fuzz --seconds $(SECONDS)

demo: $(STAMP)  ## the main job: handwritten digits at finite and infinite width
	$(BIN)/tplimit demo --out $(OUT)

demo-small: $(STAMP)  ## the same in seconds, into a temporary folder
	out=$$(mktemp -d) && trap 'rm -rf "$$out"' EXIT && \
	$(BIN)/tplimit demo --out "$$out" --widths 32,64,128 --seeds 4 --replicates 2 --steps 3 --samples 512

reproduce: $(STAMP)  ## the claims of experiments/ measured again, about an hour: docs/<name>.md
	$(BIN)/python -m pip install --quiet --editable ".[experiments]"
	@set -e; for folder in $$(dirname experiments/*/__init__.py); do \
	    $(BIN)/tplimit reproduce $$(basename $$folder) --out docs; done

bench: $(STAMP)  ## every script in benchmarks/ in its small form; without --small they measure
	@set -e; for script in $$(ls benchmarks/*.py | grep -v -e /common.py -e /_); do \
	    echo "== $$script"; $(BIN)/python "$$script" --small; done

docs: $(DOCS_STAMP)  ## HTML pages in docs/_build
	$(BIN)/sphinx-build -E -W --keep-going -b html docs docs/_build

pages: $(STAMP)  ## run the code of pages that have changed: what it prints and draws, anew
	$(BIN)/python docs/pages.py

# A new pyproject.toml, of which the stamp above tells, may mean other tools.
$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --group docs
	@touch $@

clean:  ## remove what the other targets made
	rm -rf .venv .matrix build dist docs/_build tplimit-demo tplimit-compare tplimit-reproduce
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
