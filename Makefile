# make demo       set everything up and show kproxy at work
# make test       set everything up and run every check and test: all modes, one family each (15 minutes on 2 cores)
# make test-fast  the tests that need no root (2 minutes)
# make test-all   every test in every mode and family, all faults, long and random histories (hours)
# make bench      time kproxy's rule syncs and packets on this machine
# make lint       style, types and import contracts
# make mutants    plant faults in each room and print what the tests miss (ROOM=plan N=40 SEED=7)
# make help       this list
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# One more than processors: tests wait for packets and time limits. Memory bounds the number.
WORKERS ?= $(shell n=$$(nproc); echo $$((n > 4 ? 5 : n + 1)))
SUITE := $(BIN)/python -m tests.suite
# The seed of the random histories and of planted faults: make test-all SEED=N repeats them.
ifndef SEED
SEED := $(shell od -An -N4 -tu4 /dev/urandom | tr -d ' ')
endif

export PYTHON

.PHONY: help demo test test-fast test-all lint unit mutants bench setup constraints clean
.DEFAULT_GOAL := demo

help:
	@sed -n 's/^# make/make/p' Makefile

demo: $(READY)
	$(BIN)/kproxy demo

test: lint unit

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: $(READY)
	$(SUITE) -n $(WORKERS) --dist loadgroup

test-fast: $(READY)
	$(SUITE) -n $(WORKERS) --dist loadgroup --ipvs-kernels 0 -m "not root and not ipvs"

test-all: lint
	KPROXY_MATRIX=all KPROXY_FAULTS=all $(SUITE) -n $(WORKERS) --dist loadgroup
	KPROXY_SEED=$(SEED) $(SUITE) -n $(WORKERS) -m "hypothesis and not ipvs" --hypothesis-seed $(SEED)

mutants: $(READY)
	$(BIN)/python -m tools.mutants --workers $(WORKERS) --seed $(SEED) $(if $(N),--number $(N)) \
	  $(if $(ROOM),--rooms $(ROOM)) $(if $(TESTS),--tests $(TESTS)) $(if $(ROOTLESS),--rootless)

bench: $(READY)
	$(BIN)/kproxy bench

setup: $(READY)

$(READY): pyproject.toml lab/pyproject.toml constraints.txt tools/debian-packages tools/promtool
	tools/debian-packages
	tools/promtool
	$(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=constraints.txt $(BIN)/pip install -q --disable-pip-version-check -e '.[bench,dev]' -e lab
	@PIP_CONSTRAINT=constraints.txt $(BIN)/pip install -q --disable-pip-version-check -e '.[legacy]' \
	  >$(VENV)/legacy.log 2>&1 || echo "python-iptables was not built ($(VENV)/legacy.log): iptables-legacy-save is used instead"
	$(BIN)/python -m compileall -q kproxy lab # as an installation is: the environment may forbid to do so later
	touch $@

# Pin the newest versions that pyproject.toml allows.
constraints:
	rm -rf $(VENV)
	tools/debian-packages
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -e '.[bench,dev,legacy]' -e lab hatchling editables
	$(BIN)/pip freeze --exclude-editable > constraints.txt

clean:
	rm -rf $(VENV) .cache build dist .mypy_cache .ruff_cache .hypothesis .import_linter_cache
