"""Progress bars on stderr, where a person sees them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from edge_pslora.progress import Progress, SilentProgress

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID


@contextmanager
def progress_on(stream: TextIO, *, quiet: bool) -> Iterator[Progress]:
    """A progress that draws bars when `stream` is a terminal and `quiet` is off, else nothing."""
    if quiet or not stream.isatty():
        yield SilentProgress()
        return
    # Rich takes 70 ms to import: only a terminal pays for it.
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars

    with Bars(
        SpinnerColumn(finished_text="✓" if _can_encode(stream, "✓") else "*"),
        TextColumn("{task.description:<22}", markup=False),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}", markup=False),
        console=Console(file=stream),
        # What others print is not ours to move above the bars: quiet_others() holds it back.
        redirect_stdout=False,
        redirect_stderr=False,
    ) as bars:
        yield RichProgress(bars)


def _can_encode(stream: TextIO, text: str) -> bool:
    try:
        text.encode(stream.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


class RichProgress:
    """One bar per stage; finished stages stay visible."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._task: TaskID | None = None

    def start(self, stage: str, total: int | None) -> None:
        self.finish()
        self._task = self._bars.add_task(stage, total=total, note="")

    def advance(self, n: int, note: str = "") -> None:
        if self._task is not None:
            self._bars.update(self._task, advance=n, note=note)

    def finish(self) -> None:
        if self._task is None:
            return
        # A stage of unknown length has as many units as were done; others may end early.
        done = next(t.completed for t in self._bars.tasks if t.id == self._task)
        self._bars.update(self._task, total=max(done, 1), completed=max(done, 1), note="")
        self._task = None

    def say(self, line: str) -> None:
        self._bars.console.print(line, markup=False, highlight=False)
