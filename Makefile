# make demo: a talking video in out/demo.mp4.  make test: the tests.  Both set up .venv on first use.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
PLUGINS := $(wildcard plugins/*)

.PHONY: demo test lint format bench clean

demo: $(READY)
	$(BIN)/omni run

test: $(READY)
	$(BIN)/pytest

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(READY)
	$(BIN)/python -m benchmarks.overhead

$(READY): pyproject.toml constraints.txt $(wildcard plugins/*/pyproject.toml)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]' $(PLUGINS:%=--editable %)
	touch $@

clean:
	rm -rf .venv out build dist
