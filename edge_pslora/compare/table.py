"""The table of a comparison: for each method the mean over its runs, with what it cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edge_pslora.compare.methods import METHODS
from edge_pslora.compare.results import Result
from edge_pslora.compare.statistics import estimate
from edge_pslora.units import format_size

Column = tuple[str, Callable[[Sequence[Result]], str]]


def _share(name: str) -> Callable[[Sequence[Result]], str]:
    def cell(results: Sequence[Result]) -> str:
        values = [v for r in results if (v := getattr(r, name)) is not None]
        return f"{sum(values) / len(values):.3f}" if values else ""

    return cell


def _average(results: Sequence[Result]) -> str:
    """With half of the 95 % interval over the seeds, where there are several."""
    found = estimate([r.average for r in results])
    half = "" if found.high is None else f" ±{found.high - found.mean:.3f}"
    return f"{found.mean:.3f}{half}"


def _mean(results: Sequence[Result], name: str) -> float:
    return sum(float(getattr(r, name)) for r in results) / len(results)


COLUMNS: tuple[Column, ...] = (
    ("average", _average),
    ("learning", _share("learning")),
    ("backward", _share("backward")),
    ("forgetting", _share("forgetting")),
    ("CPU s", lambda results: f"{_mean(results, 'seconds'):.1f}"),
    ("peak", lambda results: format_size(round(_mean(results, "peak_bytes")))),
    ("kept", lambda results: format_size(round(_mean(results, "kept_bytes")))),
    ("trained", lambda results: f"{round(_mean(results, 'trained')):,}"),
    ("runs", lambda results: str(len(results))),
)


def by_method(results: Sequence[Result]) -> dict[str, list[Result]]:
    """In the order of METHODS; those that it does not have come last."""
    keys = [*METHODS, *(r.method for r in results)]
    found = {key: [r for r in results if r.method == key] for key in dict.fromkeys(keys)}
    return {key: own for key, own in found.items() if own}


def format_results(results: Sequence[Result]) -> list[str]:
    """Aligned lines, a heading and one for each method. * keeps training samples; (bound): joint training.

    Raises:
        UsageError: scipy is missing, and a method has several runs.
    """
    cells = [["method", *(name for name, _ in COLUMNS)]]
    for key, own in by_method(results).items():
        name = METHODS[key].name if key in METHODS else key
        mark = " *" if own[0].stores_samples else " (bound)" if own[0].joint else ""
        cells.append([f"{key}: {name}{mark}", *(cell(own) for _, cell in COLUMNS)])
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    return [
        "  ".join(
            [
                line[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True)),
            ]
        )
        for line in cells
    ]
