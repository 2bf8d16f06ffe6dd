"""From runs over seeds to the rows of the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.run_stream import StreamRun
from benchmarks.table import Better, Row, row


@dataclass(frozen=True)
class Targets:
    """What the figures of one method are held to, each None where nothing is asked.

    average: at least this. about_average, about_backward: known values, to be met within `within`.
    """

    average: float | None = None
    about_average: float | None = None
    about_backward: float | None = None
    within: float = 0.05


def rows_of(name: str, runs: Sequence[StreamRun], targets: Targets | None = None) -> list[Row]:
    """The rows of the method of this name; what is undefined (joint training) has none."""
    own = [run for run in runs if run.method == name]
    wanted = targets or Targets()
    averages = [run.average for run in own]
    backward = [run.backward for run in own if run.backward is not None]
    learning = [run.learning for run in own if run.learning is not None]
    lost = [run.forgetting for run in own if run.forgetting is not None]
    figures: list[tuple[str, list[float], str, Better, float | None]] = [
        ("average accuracy", averages, "fraction", "higher", wanted.average),
        ("just after learning", learning, "fraction", "higher", None),
        ("backward transfer", backward, "fraction", "higher", None),
        ("forgetting", lost, "fraction", "lower", None),
        ("seconds of training", [run.seconds for run in own], "s", "lower", None),
    ]
    # "about x" as a figure that has a better side: how far the measured value is from x
    for what, values, about in (
        ("average accuracy", averages, wanted.about_average),
        ("backward transfer", backward, wanted.about_backward),
    ):
        if about is not None:
            distances = [abs(value - about) for value in values]
            what = f"{what}, distance from {about:g}"
            figures.append((what, distances, "fraction", "lower", wanted.within))
    return [
        row(f"{name}: {what}", values, unit, better, target)
        for what, values, unit, better, target in figures
        if values
    ]


def summary(run: StreamRun) -> str:
    """One line on one run."""
    figures = {"average": run.average, "just after learning": run.learning}
    figures |= {"backward transfer": run.backward, "forgetting": run.forgetting}
    known = [f"{name} {value:.3f}" for name, value in figures.items() if value is not None]
    return ", ".join([*known, f"{run.seconds:.0f} s"])
