"""What a section is asked to do, and the rows that it answers with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Plan:
    """quick: the form that `make test` runs. scratch: an empty folder of the section's own.

    shared: a folder for what several sections, or one with and without its faults, start from.
    """

    quick: bool
    scratch: Path
    seed: int = 0
    shared: Path | None = None

    def size(self, full: int, quick: int) -> int:
        """How many cases."""
        return quick if self.quick else full


@dataclass(frozen=True)
class Row:
    """One line of the table: `bad` of `cases` went wrong.

    wanted: cases that must have been tried. allowed: how many may be bad (nearly always none).
    note: what else was measured, or the first that went wrong.
    """

    what: str
    cases: int
    bad: float
    wanted: int = 1
    allowed: float = 0
    note: str = ""

    @property
    def met(self) -> bool:
        return self.cases >= self.wanted and self.bad <= self.allowed


class Section(Protocol):
    """What a module of this folder has. PLANTS: name -> puts the fault into the running code."""

    PLANTS: Mapping[str, Callable[[], None]]

    @staticmethod
    def run(plan: Plan) -> list[Row]: ...


def format_rows(rows: Sequence[Row]) -> str:
    """Aligned columns, one line for each row."""
    cells = [("what", "cases", "bad", "target", "met", "")]
    for row in rows:
        target = f"<= {row.allowed:g} of >= {row.wanted}"
        bad = f"{row.bad:g}"
        cells.append((row.what, str(row.cases), bad, target, "yes" if row.met else "NO", row.note))
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in cells]
    lines.insert(1, "  ".join("-" * width for width in widths[:-1]))
    return "\n".join(line.rstrip() for line in lines)
