"""A disk full while a deployed model is replaced. Kills: tests/torture, `export --patch`."""

from __future__ import annotations

import itertools
import os

import pytest

from edge_pslora.errors import EdgePsloraError
from edge_pslora.exporters.export_patch import patch_export
from tests.exporters.patch_kit import deploy, files_of


def test_a_full_disk_changes_nothing(text, tmp_path, monkeypatch):
    opened, made = text
    existing = deploy(made[0].two, tmp_path / "d")
    before = files_of(tmp_path / "d")
    real = os.fsync
    for failing in (1, 2):
        calls = itertools.count(1)

        def fsync(descriptor: int, calls=calls, failing=failing) -> None:
            if next(calls) == failing:
                raise OSError(28, "No space left on device")
            real(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(EdgePsloraError, match="No space left"):
            patch_export(opened.path, existing)
        monkeypatch.setattr(os, "fsync", real)
        assert files_of(tmp_path / "d") == before
