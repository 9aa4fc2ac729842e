# Every target makes .venv by itself, and again when pyproject.toml changes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
DEMO_ARGS ?=
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test check bench clean

help:
	@echo "make demo    watch a market being replayed, in this terminal (DEMO_ARGS=…)"
	@echo "make test    check, then the test suite (PYTEST_ARGS=…)"
	@echo "make check   ruff and mypy"
	@echo "make bench   measure against Node (node, npm, cc), ccxt (brings it), Redis (redis-server)"
	@echo "make clean   remove .venv and everything that was built"

demo: $(VENV)/.runtime
	@$(BIN)/tardisd demo $(DEMO_ARGS)

test: check
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(PYTEST_ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(BIN)/python benches/startup.py
	$(BIN)/python benches/replay.py
	$(BIN)/python benches/delivery.py
	$(BIN)/python benches/fanout.py
	$(BIN)/python benches/pacing.py
	$(BIN)/python benches/scale.py
	$(BIN)/python benches/http_stream.py
	$(BIN)/python benches/backfill.py
	$(BIN)/python benches/redis.py
	$(BIN)/python benches/postgres.py
	$(BIN)/python benches/webhook.py

clean:
	rm -rf $(VENV) build dist benches/node_modules benches/results benches/count benches/count_http benches/crowd
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A virtual environment whose interpreter has gone is made anew.
$(VENV)/.made:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "make: $(PYTHON) not found; install Python 3.11 or newer, or say PYTHON=/path/to/python" >&2; \
	  exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: $$($(PYTHON) --version) is too old; tardisd needs 3.11, say PYTHON=python3.11" >&2; \
	  exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "make: $(PYTHON) has no venv module; on Debian: apt install python3-venv" >&2; exit 1; }
	@$(BIN)/python -c '' 2>/dev/null || rm -rf $(VENV)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.runtime: pyproject.toml | $(VENV)/.made
	@echo "installing tardisd into $(VENV) (only now and when pyproject.toml changes)"
	@$(PIP) install --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/.made
	@echo "installing tardisd and its test tools into $(VENV) (only now and when pyproject.toml changes)"
	@$(PIP) install --editable '.[dev,all]'
	@touch $@ $(VENV)/.runtime
