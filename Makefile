# Every target sets up what it needs; the second run is fast.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check install --quiet --constraint constraints.txt
DEMO_OUT ?= edge-pslora-demo

.PHONY: adapt test lint pytest bench-quick clean

# The whole loop on bundled data; leaves an ONNX file that onnxruntime has run.
adapt: $(VENV)/.core
	$(BIN)/edge-pslora demo --out $(DEMO_OUT)

# Linter, type checker, tests.
test: lint pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/lib build/typecheck
	$(PIP) --no-deps --no-build-isolation --target build/typecheck .
	cd build/typecheck && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p edge_pslora

pytest: $(VENV)/.dev
	$(BIN)/python -m pytest

$(VENV)/.core: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[dev]'
	touch $(VENV)/.core $@

# The PACS yardstick (needs ../shared or EDGE_PSLORA_DATA); writes benchmarks/out/quick.json.
bench-quick: $(VENV)/.dev
	$(BIN)/python benchmarks/quick.py

clean:
	rm -rf $(VENV) build benchmarks/out $(DEMO_OUT)
