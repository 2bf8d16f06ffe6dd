"""Workspaces that several tests start from; each gets its own copy."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge_pslora.config import AdaptConfig
from edge_pslora.models.options import ModelOptions
from edge_pslora.pipeline import adapt
from tests.pipeline import pipeline_kit as kit


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., kit.Outcome]:
    """The command line in this process: run(*arguments) -> Outcome."""
    return kit.command_line(capsys)


@pytest.fixture(scope="module")
def kept_graphs() -> Iterator[None]:
    """For modules that are not about tracing: a graph is found once, see tests/graph_kit.py."""
    from tests.graph_kit import graphs_kept

    with graphs_kept():
        yield


@pytest.fixture(scope="session")
def two_sessions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace that learned the digits 0 to 3 and then 4 to 6, made once."""
    folder = tmp_path_factory.mktemp("two")
    for number, labels in enumerate(((0, 1, 2, 3), (4, 5, 6)), start=1):
        data = kit.digits_npz(folder / f"{number}.npz", labels)
        result = adapt(data, model="auto", workspace=folder / "w", config=AdaptConfig())
        assert result.promoted, result.reason
    return folder / "w"


@pytest.fixture(scope="session")
def image_workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace for pictures, made once and only read."""
    folder = tmp_path_factory.mktemp("images")
    data = kit.write_images(folder / "photos", (0, 1), 40)
    options = ModelOptions(image_size=8)
    assert adapt(data, model="auto", workspace=folder / "w", model_options=options).promoted
    return folder / "w"


@pytest.fixture
def workspace(two_sessions: Path, tmp_path: Path) -> Path:
    """A copy of `two_sessions`."""
    return Path(shutil.copytree(two_sessions, tmp_path / "w"))
