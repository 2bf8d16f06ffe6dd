"""Workspaces of tiny models that the tests of patched files share; each is made when it is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_pslora.workspace.workspace import Workspace
from tests.exporters import patch_kit

World = tuple[Workspace, list[patch_kit.Made]]


class _Worlds(dict[str, World]):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def __missing__(self, kind: str) -> World:
        self[kind] = patch_kit.workspace_of(kind, self.folder / kind)
        return self[kind]


@pytest.fixture(scope="session")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, World]:
    """kind -> a workspace of some generations, and those as full exports."""
    return _Worlds(tmp_path_factory.mktemp("worlds"))


@pytest.fixture(params=list(patch_kit.KINDS))
def world(request: pytest.FixtureRequest, worlds: dict[str, World]) -> World:
    return worlds[request.param]


@pytest.fixture
def text(worlds: dict[str, World]) -> World:
    return worlds["text"]
