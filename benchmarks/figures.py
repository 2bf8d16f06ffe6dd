"""From runs over seeds to the rows of the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.table import Better, Row, row
from edge_pslora.compare.results import Matrix, Result
from edge_pslora.compare.run import figures


@dataclass(frozen=True)
class StreamRun:
    """matrix[i][j]: accuracy on task j after session i. seconds: of the processor, for the sessions alone.
    learning, backward, forgetting: None where undefined (METHOD.md, "Metrics").
    """

    method: str
    seed: int
    matrix: Matrix
    average: float
    learning: float | None
    backward: float | None
    forgetting: float | None
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def shown(result: Result, name: str) -> StreamRun:
    """A result of the comparison under a name of the table."""
    return summarised(name, result.seed, result.matrix, result.seconds)


def summarised(name: str, seed: int, matrix: Matrix, seconds: float) -> StreamRun:
    found = figures(matrix, (0.0,) * len(matrix[0]))
    return StreamRun(
        name,
        seed,
        matrix,
        found["average"],
        found["learning"],
        found["backward"],
        found["forgetting"],
        seconds,
    )


def rows_of(name: str, runs: Sequence[StreamRun]) -> list[Row]:
    """The rows of the method of this name; what is undefined (joint training) has none."""
    own = [run for run in runs if run.method == name]
    values: list[tuple[str, list[float | None], str, Better]] = [
        ("average accuracy", [run.average for run in own], "fraction", "higher"),
        ("just after learning", [run.learning for run in own], "fraction", "higher"),
        ("backward transfer", [run.backward for run in own], "fraction", "higher"),
        ("forgetting", [run.forgetting for run in own], "fraction", "lower"),
        ("seconds of training", [run.seconds for run in own], "s", "lower"),
    ]
    known = [
        (what, [v for v in seen if v is not None], unit, side) for what, seen, unit, side in values
    ]
    return [row(f"{name}: {what}", seen, unit, side) for what, seen, unit, side in known if seen]


def summary(run: StreamRun) -> str:
    """One line on one run."""
    figures = {"average": run.average, "just after learning": run.learning}
    figures |= {"backward transfer": run.backward, "forgetting": run.forgetting}
    known = [f"{name} {value:.3f}" for name, value in figures.items() if value is not None]
    return ", ".join([*known, f"{run.seconds:.0f} s"])
