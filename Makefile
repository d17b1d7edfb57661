VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test check docs clean

# Fine-tune the bundled backbone on scikit-learn's digits with six methods, and print one table.
demo: $(INSTALLED)
	$(BIN)/python scripts/demo.py

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

check: $(INSTALLED)
	$(BIN)/ruff format --check lowtide tests scripts benchmarks
	$(BIN)/ruff check lowtide tests scripts benchmarks
	$(BIN)/mypy

docs: $(INSTALLED)
	$(BIN)/python scripts/generate_docs.py

$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) runs
