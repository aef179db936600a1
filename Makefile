# make demo: a talking video in out/demo.mp4.  make test: the tests (make test-slow: the slow ones; make test-all: both).
# make docs: the documentation as a site, build/site/index.html.  make gallery: the pictures of docs/gallery.md anew.
# All set up .venv on first use.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
PLUGGED := .venv/.plugged
DOCS := .venv/.docs
PLUGINS := $(wildcard plugins/*)

.PHONY: demo test test-slow test-all lint format bench docs gallery packages clean

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

docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

gallery: $(READY)
	$(BIN)/python -m benchmarks.gallery

packages: $(READY)
	for folder in . $(PLUGINS); do (cd $$folder && $(CURDIR)/$(BIN)/python -m hatchling build -d $(CURDIR)/dist) || exit 1; done

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(PLUGGED): $(READY) $(PLUGINS:%=%/pyproject.toml)
	$(BIN)/pip install --quiet --no-deps --no-build-isolation $(PLUGINS:%=--editable %)
	touch $@

$(DOCS): $(PLUGGED)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

clean:
	rm -rf .venv out build dist
