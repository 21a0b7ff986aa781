# Two commands do all the set-up on a machine with Python 3.11 or later:
#   make demo    extract, steer, audit and report on the built-in reference model
#   make test    lint, types, floors, tests, doctests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint docs organism clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/steergauge demo --out demo

test: $(STAMP) lint
	$(BIN)/pytest --numprocesses 2

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyrefly check

docs: $(STAMP)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/sphinx-build -W -b html docs docs/_build/html

organism: $(STAMP)
	$(BIN)/python -m steergauge.organism.recipe --out src/steergauge/organism/weights

clean:
	rm -rf $(VENV) demo docs/_build
