# Set-up, run and check. Two commands are enough: `make serve` and `make test`.

SHELL := /bin/bash
.SHELLFLAGS := -eo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help install serve test check format clean

PYTHON ?= python3.11
CONFIG ?= configs/demo.yaml
PORT ?= 8000
TESTS ?= tests

BIN := .venv/bin
# Each recipe becomes this process, which ends with make however make is ended.
RUN := exec "$(PYTHON)" tools/foreground.py

help: ## this list
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 18
	@echo
	@echo '  PYTHON=$(PYTHON)  CONFIG=$(CONFIG)  PORT=$(PORT)  TESTS=$(TESTS)'

install: ## .venv from requirements/cpu.lock; nothing to do when it is up to date
	@command -v "$(PYTHON)" >/dev/null || { echo 'Python 3.11 is needed: make PYTHON=...'; exit 1; }
	@$(RUN) "$(PYTHON)" tools/install_environment.py

serve: install ## serve CONFIG on PORT, in the foreground
	@echo 'triptych serve $(CONFIG) on port $(PORT)'
	@$(RUN) $(BIN)/triptych serve "$(CONFIG)" --port "$(PORT)"

test: install ## the whole test suite but tests/e2e/by_hand; TESTS=tests/unit for a part
ifeq ($(TESTS),tests)
	@$(RUN) env OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadgroup --ignore=tests/e2e tests
	@$(RUN) $(BIN)/python -m pytest --ignore=tests/e2e/by_hand tests/e2e
else
	@$(RUN) $(BIN)/python -m pytest $(TESTS)
endif

check: install ## lint, format and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: install ## put the source in the project's format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean: ## remove the environment, checkpoints and everything else that make made
	rm -rf .venv .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist triptych.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
