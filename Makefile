# SPDX-License-Identifier: MIT
# Every target sets up what it needs first; a second run finds it done. `make help` lists them.

PYTHON ?= python3
# Half as many again as processors: some tests only wait.
WORKERS ?= $(shell expr $$(nproc) + $$(nproc) / 2)
EXAMPLES ?= 100000
SWITCHES ?= 2000000
ECHOED ?= 1048576
CONNECTIONS ?= 10000
GUESTS ?= x86_64 aarch64 riscv64

# Python writes down what it compiled, here, whatever the environment says: tests start it some
# hundred times.
export PYTHONPYCACHEPREFIX := $(CURDIR)/build/pycache
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
PY := $(BIN)/python

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-pure test-qemu test-kvm test-nested qemu headers matrix module check fuzz leaks stress format bench lock clean distclean run-setup dev-setup guests

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

demo: run-setup guests ## Show a guest calling a device that is a Python class
	@$(PY) -m callgate demo

test: dev-setup guests ## Run all tests but those of QEMU and KVM, with branch coverage (PYTEST="-k name" chooses)
	@rm -rf build/coverage
	@$(PY) -m coverage run -m pytest -n $(WORKERS) --ignore tests/qemu --ignore tests/kvm $(PYTEST)
	@$(PY) -m coverage combine --quiet
	@$(PY) -m coverage report

test-pure: dev-setup guests ## Run the tests of processors, and of watching, without the modules in C
	@CALLGATE_PURE=1 $(PY) -m pytest -n $(WORKERS) tests/guest tests/conformance tests/vfio_user/test_watching.py $(PYTEST)

test-qemu: dev-setup guests qemu headers ## Run the tests in a stock QEMU: Linux, and the conformance suite
	@$(PY) guest/build.py --linux x86_64
	@$(PY) -m pytest -n $(WORKERS) tests/qemu examples $(PYTEST)

test-kvm: dev-setup guests ## Run the tests on this host's KVM
	@$(PY) -m pytest -n $(WORKERS) tests/kvm $(PYTEST)

test-nested: dev-setup guests qemu ## Run them where the processor virtualizes: in a QEMU that emulates it
	@$(PYTHON) tools/get-qemu --nested
	@$(PY) guest/build.py --linux x86_64
	@tools/nested $(PY) -m pytest -p no:cacheprovider --timeout 900 tests/kvm $(PYTEST)

qemu: run-setup ## Bring a QEMU that knows vfio-user, kernels for it, and Python for their guests
	@$(PYTHON) tools/get-qemu --python $(foreach arch,$(GUESTS),--guest $(arch))

headers: qemu ## Bring what Linux modules are built with, and a newer kernel
	@$(PYTHON) tools/get-headers --newer $(foreach arch,$(GUESTS),--guest $(arch))

matrix: dev-setup guests module ## Measure a call from each kind of driver, everywhere: docs/matrix.md (NESTED=--nested)
	@$(PYTHON) tools/get-qemu $(if $(NESTED),--nested)
	@$(PY) -m tests.matrix --write $(NESTED)

module: headers ## Build callgate.ko for the kernels that tests boot
	@set -e; for arch in $(GUESTS); do $(PYTHON) guest/linux/build.py --arch $$arch; done
	@$(PYTHON) guest/linux/build.py --newer

fuzz: dev-setup ## Send random messages to the vfio-user server (EXAMPLES=100000)
	@CALLGATE_FUZZ=$(EXAMPLES) $(PY) -m pytest tests/vfio_user/test_fuzz.py

leaks: dev-setup ## Connect 10000 times to the vfio-user server: nothing may be left
	@CALLGATE_CONNECTIONS=$(CONNECTIONS) $(PY) -m pytest tests/vfio_user/test_leaks.py

stress: dev-setup qemu leaks ## Fall asleep 2000000 times, connect 10000 times, echo 1 MiB: nothing may be lost
	@CALLGATE_SWITCHES=$(SWITCHES) $(PY) -m pytest -s tests/vfio_user/test_watching.py -k lost
	@CALLGATE_SERIAL=$(ECHOED) $(PY) -m pytest --timeout 3600 tests/qemu/test_devices.py -k serial

check: dev-setup ## Lint, format and types, nothing written
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/mypy tools/setup
	$(BIN)/mypy tools/lock
	$(BIN)/mypy tools/get-qemu
	$(BIN)/mypy tools/get-headers
	$(BIN)/mypy tools/linux-reference
	$(BIN)/mypy guest/linux/build.py
	$(BIN)/mypy tools/nested
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
	find src tests examples guest tools -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean ## Remove the virtual environment too
	rm -rf .venv src/callgate.egg-info
	find src -name "*.so" -delete

# The steps that the targets above share.

run-setup dev-setup:
	@command -v $(PYTHON) >/dev/null || { \
		echo "callgate: $(PYTHON) is not on this machine; install Python 3.11 or later:"; \
		echo "    apt-get install python3 python3-venv"; exit 1; }
	@$(PYTHON) tools/setup $(@:-setup=)

guests: | run-setup
	@$(PY) guest/build.py
