# `make compare` and `make test` need only Python >= 3.11, pip and make; everything goes into .venv.

PYTHON ?= python3
BIN := .venv/bin
# A file's tests stay in one process; each process needs about 2 GiB.
PARALLEL := -n auto --maxprocesses=4 --dist=loadfile
.DEFAULT_GOAL := help

.PHONY: help compare test test-all check docs clean

help:
	@echo "make compare   install, rank losses on the digits data, write report.html"
	@echo "make test      install and run the tests"
	@echo "make test-all  the same with the slow ones"
	@echo "make check     ruff and the type checker"
	@echo "make docs      rewrite the pages that follow from cards and evidence"

compare: .venv/.installed
	$(BIN)/logitkit compare

test: .venv/.installed-test
	$(BIN)/python -m pytest $(PARALLEL)

test-all: .venv/.installed-test
	$(BIN)/python -m pytest $(PARALLEL) -m "slow or not slow"

check: .venv/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/.installed
	$(BIN)/python docs/generate.py

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.installed: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/.installed-test: .venv/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info src/*.egg-info
