# make demo   set everything up and show kproxy at work
# make test   set everything up and run every check and test
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
FAILED := .cache/failed-tests
WORKERS ?= $(shell n=$$(nproc); echo $$((n > 4 ? 4 : n)))

export PYTHON

.PHONY: demo test lint unit bench setup constraints clean
.DEFAULT_GOAL := demo

demo: $(READY)
	$(BIN)/kproxy demo

test: lint unit

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: $(READY)
	$(BIN)/pytest -n $(WORKERS) --dist loadgroup --failed-to $(FAILED) || \
	  { test -s $(FAILED) && echo "Once more, by themselves:" && $(BIN)/pytest @$(FAILED); }

bench: $(READY)
	$(BIN)/kproxy bench

setup: $(READY)

$(READY): pyproject.toml constraints.txt tools/debian-packages tools/promtool
	tools/debian-packages
	tools/promtool
	$(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=constraints.txt $(BIN)/pip install -q --disable-pip-version-check -e '.[lab,bench,dev]'
	@PIP_CONSTRAINT=constraints.txt $(BIN)/pip install -q --disable-pip-version-check -e '.[legacy]' \
	  >$(VENV)/legacy.log 2>&1 || echo "python-iptables was not built ($(VENV)/legacy.log): iptables-legacy-save is used instead"
	$(BIN)/python -m compileall -q kproxy # as an installation is: the environment may forbid to do so later
	touch $@

# Pin the newest versions that pyproject.toml allows.
constraints:
	rm -rf $(VENV)
	tools/debian-packages
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -e '.[lab,bench,dev,legacy]' hatchling editables
	$(BIN)/pip freeze --exclude-editable > constraints.txt

clean:
	rm -rf $(VENV) .cache build dist .mypy_cache .ruff_cache .hypothesis .import_linter_cache
