# Two commands matter: `make demo` and `make test`. Both set up what they need.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
DEMO ?= demo_output
PATIENTS ?= 2000

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-python lint format build bench docs clean

help: ## print this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(VENV)/.installed ## make .venv and install everything into it

$(VENV)/.installed: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) was not found: install it, or make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@# torch first and pinned: without it, pip takes the build with gigabytes of CUDA
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup ## simulate patients, then the whole loop; results in demo_output/
	@test -d $(DEMO)/source || $(BIN)/omop-gpt simulate --output_folder $(DEMO)/source --num_of_patients $(PATIENTS)
	$(BIN)/omop-gpt run --input_folder $(DEMO)/source --output_folder $(DEMO)/result --train_settings examples/tiny.yaml

test: setup lint test-python ## all tests: the linters, pytest, and dbt's tests through it

lint: setup ## ruff and sqlfluff
	$(BIN)/ruff check python examples benchmarks
	$(BIN)/ruff format --check python examples benchmarks
	$(BIN)/sqlfluff lint --processes 2 models tests

test-python: setup ## pytest
	$(BIN)/pytest -q --durations=5

format: setup ## mend what the linters can
	$(BIN)/ruff check --fix python examples benchmarks
	$(BIN)/ruff format python examples benchmarks
	$(BIN)/sqlfluff fix models tests

build: setup ## the wheel, in dist/
	$(BIN)/python -m build --wheel

bench: setup ## time encode at 1,000 to 100,000 simulated patients, in benchmarks/out/
	$(BIN)/python benchmarks/encode.py sizes --output_folder benchmarks/out --sizes 1000 10000 100000

docs: setup ## dbt's documentation site, in docs/site/
	$(BIN)/dbt docs generate --static --target-path docs/site

clean: ## remove what the other commands made
	rm -rf $(VENV) $(DEMO) dist build target logs docs/site benchmarks/out .pytest_cache .ruff_cache
