# One command from nothing: `make test` builds the environment when it is missing or out of date.
PY := .venv/bin/python
ARGS ?=

.PHONY: help env test test-slow test-gpu smoke lint format docs clean

help:
	@echo "make env        .venv with pinned packages (tools/env.sh)"
	@echo "make test       environment, then every test that is neither slow nor gpu"
	@echo "make test-slow  the tests marked slow      make test-gpu  the tests marked gpu"
	@echo "make smoke      the toy corpus, all stages (egs/toy/run.sh)"
	@echo "make lint       ruff and mypy              make format    let ruff mend what it can"
	@echo "make docs       check the documents against the code"
	@echo "ARGS='-k name'  goes to pytest"

env:
	@bash tools/env.sh

test: env
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 -m "not slow and not gpu" $(ARGS)

test-slow: env
	OMP_NUM_THREADS=1 $(PY) -m pytest -m "slow and not gpu" $(ARGS)

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
