"""What a disturbed run may leave behind and say; sections space and limits count what is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.torture.acts import Ends, Scene, finished, problem, read_tree
from tests.torture.plan import Row
from tests.torture.tracer import Call

ENOUGH = 3  # so many bad cases tell what there is to tell


@dataclass
class Tally:
    """Of one kind of failure. refused: how many runs said that they failed. first: that went wrong."""

    points: int = 0
    bad: int = 0
    refused: int = 0
    first: str = ""

    def add(self, wrong: str | None, *, refused: bool) -> None:
        self.points += 1
        self.refused += refused
        if wrong is not None:
            self.bad += 1
            self.first = self.first or wrong


@dataclass(frozen=True)
class Known:
    """A scene, its undisturbed ends and the calls between them."""

    scene: Scene
    ends: Ends
    calls: Sequence[Call]


@dataclass
class Bench:
    """Where it happens. tallies: by the name of the kind."""

    folder: Path
    tallies: dict[str, Tally] = field(default_factory=dict)

    @property
    def streams(self) -> tuple[Path, Path]:
        """Files for stderr and stdout of a disturbed run: outside of what is disturbed."""
        return self.folder / "errors", self.folder / "said"

    def forget(self) -> None:
        for path in self.streams:
            path.unlink(missing_ok=True)

    @property
    def bad(self) -> int:
        return sum(tally.bad for tally in self.tallies.values())

    def tally(self, name: str) -> Tally:
        return self.tallies.setdefault(name, Tally())


def judged(known: Known, root: Path, bench: Bench, code: int) -> str | None:
    """What is wrong with what a disturbed run left and said, and with the run after it; or None."""
    scene, ends = known.scene, known.ends
    errors, said = bench.streams
    words = errors.read_text() if errors.exists() else ""
    if code not in {0, 1, scene.ends}:
        return f"exit code {code}: {words[-300:]}"
    # what a device's own check came to is told as it happens
    lines = [line for line in words.splitlines() if not line.startswith("health check ")]
    lines = lines or (said.read_text().splitlines() if said.exists() else [])
    if code == 1 and (len(lines) != 1 or "Traceback" in words):
        return f"not one line: {words[-300:]}"
    tree = read_tree(root)
    reported = code == 0 == scene.ends
    wrong = problem(root, scene, tree, ends, reported=reported, same_run=False)
    return wrong or finished(scene, root, errors, ends)


def tally_row(what: str, tally: Tally, wanted: int) -> Row:
    """How often it was tried, how often it went wrong, and how often the command said that it failed."""
    note = tally.first or f"{tally.refused} said so and failed, the others went on"
    return Row(what, tally.points, tally.bad, wanted=wanted, note=note)
