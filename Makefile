# One target per check; nothing here needs more than python3 >= 3.11 and a network for the first installation.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= reports/demo
GPU ?= reports/gpu
PYTEST_ARGS ?= -n 2
SHELL := /bin/bash

.DEFAULT_GOAL := help
.PHONY: help setup demo report test test-all test-usb test-oldest test-newest gpu docs lint format type clean

help:  ## show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dembench needs Python 3.11 or newer (make PYTHON=...)")'
	$(PYTHON) -m venv $(VENV)

# Two stamps: what a user needs, and that plus the checks. The second makes the first, so that neither is done twice.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[all]"
	@touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	@touch $(VENV)/.installed $@

setup: $(VENV)/.installed-test  ## .venv with everything, test tools included

demo: $(VENV)/.installed  ## EM, DEM, DEM* and AdaDEM on embedded data of all tasks, and the report of it
	$(BIN)/dembench suite quick --out $(DEMO)

report: $(VENV)/.installed  ## report of all runs under runs/
	$(BIN)/dembench report runs --out reports

lint: $(VENV)/.installed-test  ## ruff, rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed-test  ## rewrite the files in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: $(VENV)/.installed-test  ## mypy: core, harness, report, tasks/base.py
	@mkdir -p .mypy_cache/path && ln -sfn "$(CURDIR)" .mypy_cache/path/dembench  # a clone may have any name
	MYPYPATH=.mypy_cache/path $(BIN)/mypy

test: lint type  ## lint, types, and all tests that take seconds
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS) -m "not slow"

test-all: lint type  ## the slow tests too, and those against USB itself where its environment can be made
	-$(MAKE) $(VENV)-usb/.installed
	DEMBENCH_USB_PYTHON="$(abspath $(VENV)-usb/bin/python)" \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

# USB pins versions that do not fit ours. Without a network or 8 GB of disk its tests are skipped.
$(VENV)-usb/.installed: examples/usb/requirements.txt
	python3.11 -m venv $(VENV)-usb
	$(VENV)-usb/bin/python -m pip install --quiet --disable-pip-version-check -r $< -e . pytest
	@touch $@

test-usb: $(VENV)-usb/.installed $(VENV)/.installed-test  ## against USB's package, in an environment of its own (Python 3.11)
	DEMBENCH_USB_PYTHON="$(abspath $(VENV)-usb/bin/python)" $(BIN)/python -m pytest tests/tasks/semi/test_usb_environment.py

test-oldest:  ## the lowest versions that pyproject.toml admits, in an environment of their own (Python 3.11)
	test -e $(VENV)-oldest/bin/python || python3.11 -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python scripts/lowest.py > $(VENV)-oldest/constraints.txt
	$(VENV)-oldest/bin/python -m pip install --quiet --disable-pip-version-check -c $(VENV)-oldest/constraints.txt -e ".[test]"
	OMP_NUM_THREADS=1 $(VENV)-oldest/bin/python -m pytest $(PYTEST_ARGS) -m "not slow"

test-newest:  ## the newest versions, without constraints, in an environment of their own
	test -e $(VENV)-newest/bin/python || $(PYTHON) -m venv $(VENV)-newest
	$(VENV)-newest/bin/python -m pip install --quiet --disable-pip-version-check --upgrade --upgrade-strategy eager -e ".[test]"
	OMP_NUM_THREADS=1 $(VENV)-newest/bin/python -m pytest $(PYTEST_ARGS) -m "not slow"

docs: $(BIN)/python  ## the site in site/, no warning allowed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

gpu: $(VENV)/.installed-test  ## on a machine with a CUDA device: its tests, the losses, a step of each task
	$(BIN)/dembench check gpu --out $(GPU)

clean:  ## remove what building and testing leave (not .venv, not runs/)
	rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
