"""Bars are drawn on a terminal and nowhere else."""

from __future__ import annotations

import io

import pytest

from edge_pslora.cli.progress_bar import progress_on
from edge_pslora.progress import Progress, SilentProgress


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def _work(progress: Progress) -> None:
    progress.start("train", 10)
    for _ in range(4):
        progress.advance(1, "loss [red]0.5[/red]")
    progress.finish()
    progress.say("rank 8 on [2] layers")
    progress.start("read", None)
    progress.advance(3)
    progress.finish()
    progress.finish()


@pytest.mark.parametrize(
    ("stream", "quiet"), [(io.StringIO(), False), (Terminal(), True)], ids=["pipe", "quiet"]
)
def test_nothing_is_drawn(stream: io.StringIO, quiet: bool) -> None:
    with progress_on(stream, quiet=quiet) as progress:
        assert isinstance(progress, SilentProgress)
        _work(progress)
    assert stream.getvalue() == ""


def test_stages_are_drawn_on_a_terminal() -> None:
    stream = Terminal()
    with progress_on(stream, quiet=False) as progress:
        _work(progress)
    assert "train" in stream.getvalue()
    assert "read" in stream.getvalue()
    assert "rank 8 on [2] layers" in stream.getvalue()


def test_a_failure_ends_the_drawing() -> None:
    stream = Terminal()

    def fail() -> None:
        with progress_on(stream, quiet=False) as progress:
            progress.start("train", 10)
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert stream.getvalue().endswith(("\n", "\x1b[?25h"))  # the cursor is shown again
