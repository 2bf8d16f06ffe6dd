"""Bytes and fold time of the history after 1, 15, 100, 1000 sessions."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks.core_setup import SEED, Part, Sizes, threads_set_to, timed
from benchmarks.core_updates import Shapes, empty_history, session_updates
from benchmarks.history_forms import Factors, add, fidelity
from benchmarks.table import Row, median_row
from edge_pslora.core.fixed_point import component_bytes
from edge_pslora.core.history import LayerHistory, fold, overhead_bytes, pool_bytes
from edge_pslora.training.persist import history_to_arrays
from edge_pslora.workspace.tensors import write_tensors

AGREEMENT = 0.99
SHARES = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)  # of dense float32, least first


@dataclass(frozen=True)
class HistoryFigure:
    """After T sessions: bytes of the file; seconds of the T-th fold, once for each repeat."""

    sessions: int
    file_bytes: int
    seconds: tuple[float, ...]


def history_part(shapes: Shapes, sizes: Sizes) -> Part:
    """Rows at each T, the bytes at the last T over those at the first, and what they are worth."""
    with threads_set_to(sizes.threads):
        return Part(_rows(shapes, sizes))


def _rows(shapes: Shapes, sizes: Sizes) -> list[Row]:
    figures = measure_history(shapes, sizes)
    first, last = figures[0], figures[-1]
    ratio = last.file_bytes / first.file_bytes
    name = f"history bytes at T = {last.sessions} / at T = {first.sessions}"
    rows = [median_row(name, [ratio], "ratio", "lower", 1.0)]
    for f in figures:
        rows.append(
            median_row(f"history bytes at T = {f.sessions}", [f.file_bytes], "bytes", "lower")
        )
    rows += sign_rows(shapes, sizes)
    for f in figures:
        milliseconds = [1000 * s for s in f.seconds]
        rows.append(median_row(f"fold at T = {f.sessions}", milliseconds, "ms", "lower"))
    early = figures[min(1, len(figures) - 1)]  # the first fold of all has no past to add to
    ratios = [a / b for a, b in zip(last.seconds, early.seconds, strict=True)]
    name = f"fold at T = {last.sessions} / at T = {early.sessions}"
    rows.append(median_row(name, ratios, "ratio", "lower"))
    return rows


def measure_history(shapes: Shapes, sizes: Sizes) -> list[HistoryFigure]:
    """Folds session after session into one history, then runs the folds at each T again, in turn."""
    size = pool_bytes(shapes, sizes.budget_bytes)
    history: Mapping[str, LayerHistory] = empty_history(shapes)
    lengths: dict[int, int] = {}
    folds: dict[int, Callable[[], object]] = {}
    for session in range(1, max(sizes.sessions) + 1):
        updates = session_updates(shapes, sizes.rank, session, SEED)
        before, history = history, fold(history, updates, size)
        if session in sizes.sessions:
            lengths[session] = file_bytes(history, sizes.budget_bytes)
            folds[session] = partial(fold, before, updates, size)
    seconds: dict[int, list[float]] = {session: [] for session in folds}
    for _ in range(sizes.repeats):
        for session, again in folds.items():
            with timed(seconds[session]):
                again()
    return [HistoryFigure(t, lengths[t], tuple(seconds[t])) for t in sizes.sessions]


def sign_rows(shapes: Shapes, sizes: Sizes) -> list[Row]:
    """The least share of a dense float32 history that keeps the signs after `past_sessions`.

    Agreement: the share of sum |S| where the sign is right. On made-up updates; on those of real
    training: `make bench-history`.
    """
    dense_bytes = 4 * sum(out * size for out, size in shapes.values())
    least = overhead_bytes(shapes) + sum(component_bytes(shape) for shape in shapes.values())
    agreements: dict[float, float] = {}
    for share in SHARES:
        if share * dense_bytes >= least:
            agreements[share] = sign_agreement(shapes, sizes, int(share * dense_bytes))
            if agreements[share] >= AGREEMENT:
                break
    rows = [
        median_row(
            f"sign agreement at T = {sizes.past_sessions}, {share:.3g} of dense float32 bytes",
            [agreement],
            "share",
            "higher",
        )
        for share, agreement in agreements.items()
    ]
    enough = [share for share, agreement in agreements.items() if agreement >= AGREEMENT]
    if enough:
        name = f"history bytes / dense float32 at >= {AGREEMENT:.0%} sign agreement"
        rows.insert(0, median_row(name, enough, "ratio", "lower", 1 / 8))
    return rows


def sign_agreement(shapes: Shapes, sizes: Sizes, budget_bytes: int) -> float:
    """Magnitude-weighted, of the factors under this budget with the true sum."""
    form = Factors(shapes, budget_bytes)
    truth = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
    for session in range(1, sizes.past_sessions + 1):
        updates = session_updates(shapes, sizes.rank, session, SEED)
        form.fold(updates)
        truth = add(truth, updates)
    return fidelity(form, truth).agreement


def file_bytes(history: Mapping[str, LayerHistory], budget_bytes: int) -> int:
    """The length of the file as a workspace would hold it."""
    stored = history_to_arrays(history, budget_bytes)
    with tempfile.TemporaryDirectory(prefix="edge-pslora-bench-") as folder:
        path = Path(folder) / "history.safetensors"
        write_tensors(path, stored.arrays, stored.metadata)
        return path.stat().st_size
