"""`make bench-history`: how to keep the past in few bytes, on updates of real training.

signs: MiniLM learns 14 text tasks one after another; every form folds the same updates, and is asked how
well it remembers their true sum. retention: PACS domain after domain, once with each form behind the
stability loss; what counts is the accuracy that is left.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.figures import StreamRun, shown
from benchmarks.history_forms import Dense, Factors, HistoryForm, Updates, add, fidelity
from benchmarks.places import OUT
from benchmarks.stream_loaders import TEXT_TASKS_ALL, pacs, text
from benchmarks.table import Row, format_table, row, write_table
from edge_pslora.compare.method import Method
from edge_pslora.compare.product import ProductLearner
from edge_pslora.compare.run import run
from edge_pslora.compare.stream import Stream
from edge_pslora.config import AdaptConfig, default_preset
from edge_pslora.core.history import LayerHistory, empty_layer, fold
from edge_pslora.errors import EdgePsloraError
from edge_pslora.training.memory import Memory
from edge_pslora.training.session import SessionResult
from edge_pslora.training.targets import find_targets

SAMPLES = 256  # a text task, so that 14 of them take minutes
EPOCHS = 2
EIGHTH = 1 / 8  # of the dense float32 history: the bytes that the target allows
MARKS = (1, 2, 4, 8, 14)
EXACT = 1 << 40  # a budget that cuts nothing

NewForms = Callable[[Mapping[str, tuple[int, int]]], list[HistoryForm]]


def updates_of(result: SessionResult) -> Updates:
    """P = scaling B [out, r] and Q = A [r, in] of every target."""
    return {n: (a.scaling * a.B.detach(), a.A.detach()) for n, a in result.adapters.items()}


Remember = Callable[[SessionResult], Memory]


def run_default(
    stream: Stream, config: AdaptConfig, seed: int, name: str, remember: Remember
) -> StreamRun:
    """The product's session with these settings and its memory as `remember` has it."""
    method = Method(
        "history", name, "docs/METHOD.md", lambda setup: ProductLearner(setup, remember=remember)
    )
    say = lambda task, row: print(f"  learned {task}", flush=True)  # noqa: E731
    return shown(run(method, stream, config, seed, on_session=say)[0], name)


def target_shapes(stream: Stream, config: AdaptConfig) -> dict[str, tuple[int, int]]:
    """[out, in] of every layer that the settings adapt."""
    model = stream.new_model().backbone.model
    found = find_targets(model, config.lora.target_modules)
    return {target.name: target.shape for target in found}


def text_forms(shapes: Mapping[str, tuple[int, int]]) -> list[HistoryForm]:
    """Factors at the bytes of each dense form, at an eighth, and at the default budget."""
    dense_bytes = 4 * sum(out * size for out, size in shapes.values())
    dense: list[HistoryForm] = [Dense(shapes, bits) for bits in (8, 4, 1)]
    budgets = [int(EIGHTH * dense_bytes), 1_000_000, *(form.nbytes for form in dense)]
    return [*(Factors(shapes, budget) for budget in sorted(set(budgets))), *dense]


def sign_rows(stream: Stream, config: AdaptConfig, forms_of: NewForms = text_forms) -> list[Row]:
    """Fidelity of every form after 1, 2, 4, ... sessions of one run over the stream."""
    shapes = target_shapes(stream, config)
    forms = forms_of(shapes)
    truth = {n: torch.zeros(s, dtype=torch.float64) for n, s in shapes.items()}
    rows: list[Row] = []

    def remember(result: SessionResult) -> Memory:
        truth.update(add(truth, updates_of(result)))
        for form in forms:
            form.fold(updates_of(result))
        if result.memory.sessions in MARKS:
            rows.extend(_fidelity_rows(forms, truth, result.memory.sessions))
        return result.memory

    run_default(stream, config, 0, "signs", remember)
    return rows


def _fidelity_rows(
    forms: Sequence[HistoryForm], truth: Mapping[str, torch.Tensor], sessions: int
) -> list[Row]:
    dense_bytes = 4 * sum(S.numel() for S in truth.values())
    rows = []
    for form in forms:
        found = fidelity(form, truth)
        share = form.nbytes / dense_bytes
        name = f"T = {sessions}, {form.name} ({share:.3f} of dense float32)"
        wanted = 0.99 if isinstance(form, Factors) and share == _eighth(dense_bytes) else None
        rows.append(row(f"{name}: sign agreement", [found.agreement], "share", "higher", wanted))
        if isinstance(form, Factors):
            proven = form.proven_agreement()
            rows.append(row(f"{name}: proven at least", [proven], "share", "higher"))
        rows.append(row(f"{name}: error", [found.error], "relative", "lower"))
    return rows


def _eighth(dense_bytes: int) -> float:
    return int(EIGHTH * dense_bytes) / dense_bytes


def pacs_forms(shapes: Mapping[str, tuple[int, int]]) -> list[HistoryForm]:
    """Factors and dense forms at equal bytes, and factors at the default budget."""
    dense: list[HistoryForm] = [Dense(shapes, bits) for bits in (8, 1)]
    budgets = sorted({1_000_000, *(form.nbytes for form in dense)})
    return [*(Factors(shapes, budget) for budget in budgets), *dense]


def retention_runs(
    stream: Stream, config: AdaptConfig, seed: int, forms_of: NewForms = pacs_forms
) -> list[tuple[str, StreamRun]]:
    """The stream once with each form, and once with no history at all (every session the first)."""
    shapes = target_shapes(stream, config)
    runs = []
    for form in (None, *forms_of(shapes)):
        name = "no history" if form is None else form.name
        found = run_default(stream, config, seed, name, _remembering(form, shapes))
        print(f"  {name}: average {found.average:.3f}, backward {found.backward:.3f}", flush=True)
        runs.append((name, found))
    return runs


def _remembering(form: HistoryForm | None, shapes: Mapping[str, tuple[int, int]]) -> Remember:
    """The next session's loss sees the past as `form` has it."""

    def remember(result: SessionResult) -> Memory:
        if form is None:
            history = {name: empty_layer(*shape) for name, shape in shapes.items()}
        else:
            form.fold(updates_of(result))
            history = _as_history(form, shapes)
        return replace(result.memory, history=history)

    return remember


def _as_history(
    form: HistoryForm, shapes: Mapping[str, tuple[int, int]]
) -> dict[str, LayerHistory]:
    """What the form remembers, as exact factors, which is what the stability loss takes."""
    if isinstance(form, Factors):
        return form.history
    empty = {name: empty_layer(*shape) for name, shape in shapes.items()}
    eye = {n: (torch.eye(s[0], dtype=torch.float64), form.dense(n)) for n, s in shapes.items()}
    return fold(empty, eye, EXACT)


def _signs(config: AdaptConfig, limit: int | None) -> list[Row]:
    quick = replace(config, train=replace(config.train, epochs=EPOCHS))
    with tempfile.TemporaryDirectory(prefix="edge-pslora-base-") as base:
        samples = min(limit or SAMPLES, SAMPLES)
        return sign_rows(text(0, Path(base), samples, tasks=TEXT_TASKS_ALL), quick)


def _retention(config: AdaptConfig, seed: int, limit: int | None) -> list[Row]:
    rows = []
    with tempfile.TemporaryDirectory(prefix="edge-pslora-base-") as base:
        for name, found in retention_runs(pacs(seed, Path(base), limit), config, seed):
            figures = {"average accuracy": found.average, "backward transfer": found.backward}
            rows += [
                row(f"PACS seed {seed}, {name}: {what}", [value], "fraction", "higher")
                for what, value in figures.items()
                if value is not None
            ]
    return rows


def main(arguments: Sequence[str] | None = None, *, out: Path = OUT) -> int:
    """Runs it and prints; returns the exit code: 0, or that of the error (2: data missing)."""
    options = _parser().parse_args(arguments)
    weight = options.stability_weight
    default = default_preset()
    config = replace(default, stability=replace(default.stability, weight=weight))
    rows: list[Row] = []
    try:
        if options.only != "retention":
            rows += _signs(config, options.limit)
        for seed in range(options.seeds if options.only != "signs" else 0):
            rows += _retention(config, seed, options.limit)
    except EdgePsloraError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(format_table(rows))
    name = "history-limit" if options.limit else "history"
    extra = {"stability_weight": weight, "limit": options.limit, "seeds": options.seeds}
    print(f"written: {write_table(name, rows, out, extra)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.history")
    parser.add_argument("--only", choices=("signs", "retention"), help="one of the two parts")
    parser.add_argument("--seeds", type=int, default=1, help="of the retention part")
    parser.add_argument("--limit", type=int, metavar="N", help="smoke run: N samples a part")
    parser.add_argument("--stability-weight", type=float, default=0.1, help="of the loss")
    return parser


if __name__ == "__main__":
    sys.exit(main())
