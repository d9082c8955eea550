# Everything runs in one environment, .venv, which the first target that needs it creates.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DOCS_READY := $(VENV)/.docs-ready
PYTEST_ARGS ?=
TEST_PROCESSES ?= 2
PORT ?= 4200

.DEFAULT_GOAL := help
.PHONY: help demo test serve lint types docs clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-7s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else \
	  "Python 3.11 or newer is needed, $(PYTHON) is %d.%d: make PYTHON=python3.11 ..." \
	  % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -c constraints.txt -e '.[dev]'
	@touch $@

$(DOCS_READY): $(READY)
	$(BIN)/pip install -c constraints.txt -e '.[dev,docs]'
	@touch $@

demo: $(READY) ## Super-resolve a small simulated archive, or your own: make demo SOURCE=folder
	@$(BIN)/python -m infra.demo $(if $(SOURCE),--source="$(SOURCE)")

test: $(READY) ## Run the tests; the slow ones: make test PYTEST_ARGS="-m slow"
	@$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile $(PYTEST_ARGS)

serve: $(READY) ## Prefect server and worker on this machine (PORT=4200); new scenes: SOURCE= OUTPUT=
	@exec $(BIN)/python -m infra.serve --port=$(PORT) \
	  $(if $(SOURCE),--source="$(SOURCE)") $(if $(OUTPUT),--output="$(OUTPUT)")

lint: $(READY) ## Check style and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(READY) ## Check types
	@$(BIN)/mypy

docs: $(DOCS_READY) ## Build the documentation as a site: site/index.html
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean: ## Remove the environment, caches and what the demo wrote
	rm -rf $(VENV) build dist demo site .prefect *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
