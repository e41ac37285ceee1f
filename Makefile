PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin

.PHONY: test build

build: .venv/.built

.venv/.installed:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q "$(TORCH)"
	$(BIN)/pip install -q setuptools wheel pybind11 ninja numpy pytest hypothesis expecttest
	touch $@

.venv/.built: .venv/.installed setup.py pyproject.toml $(wildcard csrc/*.* csrc/cpu/*.*)
	$(BIN)/pip install -q --no-build-isolation --no-deps -e .
	touch $@

test: build
	$(BIN)/python -m pytest -q tests
