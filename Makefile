# SPDX-License-Identifier: MIT
# Every target sets up what it needs first; a second run finds it done. `make help` lists them.

PYTHON ?= python3
WORKERS ?= 2

BIN := .venv/bin
PY := $(BIN)/python

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test check format bench lock clean distclean run-setup dev-setup guests

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

demo: run-setup guests ## Show a guest calling a device that is a Python class
	@$(PY) -m callgate demo

test: dev-setup guests ## Run all tests, with branch coverage (PYTEST="-k name" chooses)
	@rm -rf build/coverage
	@$(PY) -m coverage run -m pytest -n $(WORKERS) $(PYTEST)
	@$(PY) -m coverage combine --quiet
	@$(PY) -m coverage report

check: dev-setup ## Lint, format and types, nothing written
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/mypy tools/setup
	$(BIN)/mypy tools/lock
	@set -e; for example in $(sort $(dir $(wildcard examples/*/*.py))); do \
		echo "$(BIN)/mypy $$example"; $(BIN)/mypy $$example; \
	done

format: dev-setup ## Sort imports, format, mend what ruff can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: run-setup guests ## Measure, and print the figures
	@$(PY) -m callgate bench

lock: dev-setup ## Pin the newest releases that pyproject.toml allows
	@$(PY) tools/lock

clean: ## Remove what was built
	rm -rf build dist .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find src tests examples benchmarks guest tools -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean ## Remove the virtual environment too
	rm -rf .venv src/callgate.egg-info

# The steps that the targets above share.

run-setup dev-setup:
	@command -v $(PYTHON) >/dev/null || { \
		echo "callgate: $(PYTHON) is not on this machine; install Python 3.11 or later:"; \
		echo "    apt-get install python3 python3-venv"; exit 1; }
	@$(PYTHON) tools/setup $(@:-setup=)

guests: | run-setup
	@$(PY) guest/build.py
