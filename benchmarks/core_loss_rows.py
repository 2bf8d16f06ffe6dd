"""The stability loss by itself: scratch memory and time against dense autograd."""

from __future__ import annotations

from benchmarks.core_loss import measure_loss
from benchmarks.core_setup import Part, Setup, Sizes
from benchmarks.table import Row, median_row

NAIVE, DEFAULT = "naive", "default"


def loss_part(setup: Setup, sizes: Sizes) -> Part:
    """Every way to compute the loss of all layers, over the naive one of the same round."""
    ranks = [layer.rank for layer in setup.history.values()]
    figures = measure_loss(
        list(setup.shapes.values()),
        sizes.rank,
        max(1, round(sum(ranks) / len(ranks))),
        sizes.repeats,
        sizes.threads,
    )
    naive = next(figure for figure in figures if figure.name == NAIVE)
    memory: list[Row] = []
    time: list[Row] = []
    for figure in figures:
        if figure is naive:
            milliseconds = [1000 * s for s in figure.seconds]
            time.append(median_row("naive dense loss, all layers", milliseconds, "ms", "lower"))
            continue
        target = 0.10 if figure.name == DEFAULT else None
        scratch = figure.scratch_bytes / naive.scratch_bytes
        name = f"scratch memory of the loss, {figure.name} / naive dense"
        memory.append(median_row(name, [scratch], "ratio", "lower", target))
        ratios = [a / b for a, b in zip(figure.seconds, naive.seconds, strict=True)]
        name = f"time of the loss, {figure.name} / naive dense"
        time.append(median_row(name, ratios, "ratio", "lower"))
        if figure.name == DEFAULT:
            kept = figure.kept_bytes / naive.kept_bytes
            name = "history in memory during a session, default / dense S"
            memory.append(median_row(name, [kept], "ratio", "lower"))
    return Part(memory + time)
