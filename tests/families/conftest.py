"""What every test of the model families needs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.pipeline import pipeline_kit as kit


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., kit.Outcome]:
    """The command line in this process: run(*arguments) -> Outcome."""
    return kit.command_line(capsys)
