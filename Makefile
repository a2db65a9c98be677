# One command from nothing: `make test` builds the environment when it is missing or out of date.
PY := .venv/bin/python
ARGS ?=

.PHONY: help env test test-slow test-long test-gpu smoke lint format docs clean

help:
	@echo "make env        .venv with pinned packages (tools/env.sh)"
	@echo "make test       environment, then every test without a mark: slow, long, gpu"
	@echo "make test-slow  the tests marked slow      make test-gpu  the tests marked gpu"
	@echo "make test-long  the tests marked long: endurance and large samples, an hour"
	@echo "make smoke      the toy corpus, all stages (egs/toy/run.sh)"
	@echo "make lint       ruff and mypy              make format    let ruff mend what it can"
	@echo "make docs       regenerate two pages, check the documents against the code"
	@echo "ARGS='-k name'  goes to pytest"

env:
	@bash tools/env.sh

# Compiled test modules are kept: compiling them costs each worker eight seconds.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(PY) -m pytest

test: env
	$(PYTEST) -n 2 --dist worksteal -m "not slow and not long and not gpu" $(ARGS)

test-slow: env
	$(PYTEST) -n 2 --dist worksteal -m "slow and not gpu" $(ARGS)

test-long: env
	$(PYTEST) -m "long and not gpu" $(ARGS)

test-gpu: env
	$(PY) -m pytest -m gpu $(ARGS)

smoke: env
	./egs/toy/run.sh

lint: env
	$(PY) -m ruff check .
	$(PY) -m mypy

format: env
	$(PY) -m ruff check --fix .

docs: env
	@$(PY) tools/make_docs.py
	@if [ -d tests/docs ]; then OMP_NUM_THREADS=1 $(PY) -m pytest tests/docs $(ARGS); \
	else echo "docs: tests/docs does not exist, nothing to check"; fi

clean:
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache
