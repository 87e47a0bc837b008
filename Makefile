# The three things one does with a checkout. Needs only python3 >= 3.10 with its venv module: the first target that is
# called makes .venv and installs quire into it, linked to this checkout.
#
#   make test PYTHON=python3.12              another interpreter for a new .venv
#   make demo PIP_ARGS="--index-url URL"     any arguments for pip install: a mirror, a wheel folder, builds of torch
#                                            for another device (on Linux the default build carries CUDA: large, but
#                                            it runs everywhere)
#   make test JOBS=4                         more test processes; one thread each
#   make test ARGS="tests/reference -x"      arguments for pytest
#   make demo ARGS="..."                     arguments for quire demo

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
JOBS ?= 2
ARGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo playground test lint docs docs-serve clean

help:
	@echo "make demo    start the engine on the model that ships with quire and watch it work"
	@echo "make playground    the same model behind a page: chat, compare, watch the engine"
	@echo "make test    run the tests"
	@echo "make lint    ruff (rules and format) and mypy"
	@echo "make docs    build the documentation site into site/ (docs-serve shows it)"
	@echo "make clean   remove caches and build products; .venv stays (rm -r $(VENV) to start over)"
	@echo "Each makes $(VENV) first when it is missing or older than pyproject.toml."

# Made again when the dependencies in pyproject.toml change; pip then only adds what is missing.
$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_ARGS) --editable '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/quire demo $(ARGS)

# A small pool, short steps and drafts, so that there is something to see in the inspector and in every scenario.
playground: $(STAMP)
	$(BIN)/quire serve --ui --device cpu --enable-trace --trace-text --num-blocks 145 --max-num-batched-tokens 128 \
	  --speculative-config '{"method": "ngram", "num_speculative_tokens": 4, "adaptive": false}' $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p quire

# NO_MKDOCS_2_WARNING: an advertisement in every build's output.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

docs-serve: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve $(ARGS)

clean:
	rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
