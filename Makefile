# The two commands of a newcomer: `make train` and `make test`. Both make the environment if it is missing.
PYTHON ?= python3
VENV ?= .venv
# A torch to install, where the newest is not wanted: make train TORCH=torch==2.13.0
TORCH ?=
BIN := $(VENV)/bin
READY := $(VENV)/.installed

.PHONY: train test check clean

train: $(READY)
	$(BIN)/flambeau train lenet

test: $(READY)
	$(BIN)/pytest

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(TORCH) -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV)
