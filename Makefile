VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

OLDEST ?= .venv-oldest
OLDEST_PYTHON ?= python3.11
OLDEST_TESTS ?= tests
# What depends on versions most: CI runs it.
OLDEST_PART := tests/ops tests/codecs tests/kernels tests/core tests/tuning tests/planning tests/serving \
	tests/inference tests/integrations tests/test_versions.py tests/test_surface.py

# Neighbours stay together, so that what a module's tests share is made once.
SPREAD := -n 2 --dist worksteal

.PHONY: demo test test-all oldest test-oldest test-oldest-part check docs notebooks site package clean

# Fine-tune the bundled backbone on scikit-learn's digits with six methods: a table, a picture, a report.
demo: $(INSTALLED)
	$(BIN)/python scripts/demo.py

# The short suite: every law, method and family, but not every pair, and not the slowest tests.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(SPREAD) -m "not slow"

test-all: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(SPREAD)

# The short suite with the versions of tests/oldest.txt; OLDEST_TESTS="tests/ops ..." runs a part.
test-oldest: oldest
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest $(SPREAD) -m "not slow" $(OLDEST_TESTS)

test-oldest-part:
	$(MAKE) test-oldest OLDEST_TESTS="$(OLDEST_PART)"

oldest: $(OLDEST)/.installed

check: $(INSTALLED)
	$(BIN)/ruff format --check lowtide tests scripts benchmarks
	$(BIN)/ruff check lowtide tests scripts benchmarks
	$(BIN)/mypy

docs: $(INSTALLED)
	$(BIN)/python scripts/generate_docs.py

# Run the notebooks of docs/ anew, and keep what they print.
notebooks: $(INSTALLED)
	$(BIN)/python scripts/run_notebooks.py

# The documentation as a site in site/; a link that leads nowhere fails it.
site: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Sdist and wheel in dist/, built from the index's hatchling, installed alone and run.
package: $(INSTALLED)
	$(BIN)/python scripts/package.py

$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[dev,docs]"
	touch $@

$(OLDEST)/.installed: pyproject.toml tests/oldest.txt
	test -x $(OLDEST)/bin/python || $(OLDEST_PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --requirement tests/oldest.txt
	$(OLDEST)/bin/python -m pip install --quiet --no-deps --editable .
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST) runs dist site
