# make demo: a talking video in out/demo.mp4.  make test: the tests (make test-slow: the slow ones; make test-all: both).
# All set up .venv on first use.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
PLUGGED := .venv/.plugged
PLUGINS := $(wildcard plugins/*)

.PHONY: demo test test-slow test-all lint format bench clean

demo: $(READY)
	$(BIN)/omni run

test: $(PLUGGED)
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile -m "not slow"

test-slow: $(PLUGGED)
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile -m slow

test-all: $(PLUGGED)
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile

lint: $(PLUGGED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(READY)
	$(BIN)/python -m benchmarks.overhead

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(PLUGGED): $(READY) $(PLUGINS:%=%/pyproject.toml)
	$(BIN)/pip install --quiet --no-deps --no-build-isolation $(PLUGINS:%=--editable %)
	touch $@

clean:
	rm -rf .venv out build dist
