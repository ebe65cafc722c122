# Each target does all of its own set-up; PYTHON is any Python >= 3.11.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
# A module's fixtures, which may be whole runs, are made in one process. In the order of tests/conftest.py.
BY_FILE := --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-fast lint docs clean

demo: $(VENV)/installed  ## Write the demo data, train on it for a few minutes, evaluate
	$(RUN) main.py --recipe demo

test: $(VENV)/installed  ## The whole test suite
	$(RUN) -m pytest --numprocesses 2 $(BY_FILE)

test-fast: $(VENV)/installed  ## Without the tests that train
	$(RUN) -m pytest --numprocesses 2 $(BY_FILE) -m "not slow"

lint: $(VENV)/installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

docs: $(VENV)/installed  ## Build docs/ into build/docs; a warning is an error
	$(RUN) -m sphinx -W --keep-going -n docs build/docs

$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: $$($(PYTHON) --version) is too old; pass PYTHON=... with Python 3.11 or newer" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build runs data/demo
