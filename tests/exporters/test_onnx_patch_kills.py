"""A process killed, or a disk full, while a deployed model is replaced."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest

from edge_pslora.errors import EdgePsloraError
from edge_pslora.exporters import onnx_file
from edge_pslora.exporters.export_patch import patch_export
from edge_pslora.exporters.onnx_read import open_model
from edge_pslora.exporters.run import open_onnx
from tests.exporters import patch_driver
from tests.exporters.patch_kit import deploy, files_of, full


@pytest.mark.parametrize("two", [False, True])
def test_killed_at_every_step(text, tmp_path, two):
    """After each kill the file is one of the two, it runs, and the same command completes the work."""
    opened, made = text
    source = made[0].two if two else made[0].one
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}

    def drive(*arguments: object) -> str:
        command = [sys.executable, patch_driver.__file__, opened.path, 3, *arguments]
        done = subprocess.run(
            [str(part) for part in command],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    count = int(drive(deploy(source, tmp_path / "counted")))
    assert files_of(tmp_path / "counted") == full(made[2], two)
    for n in range(1, count + 1):
        deploy(source, tmp_path / str(n))
    drive(tmp_path, count)
    digests = {
        made[number].number: opened.generation(number + 1).manifest.files["model.onnx"]
        for number in (0, 2)
    }
    served, interim = set(), 0
    for n in range(1, count + 1):
        path = tmp_path / str(n) / "model.onnx"
        with open_model(path) as file:
            number = int(file.metadata["pslora.generation"])
            whole = onnx_file.digests(onnx_file.plan(file.model, file.sizes, None), file.weights)
            assert whole == (digests[number],)
            interim += file.data is not None and file.data.name != "model.onnx_data"
        if two:
            ids = np.zeros((1, 4), np.int64)
            assert open_onnx(path, threads=1).run({"input_ids": ids}).shape == (
                1,
                (2, 16, 300)[number - 1],
            )
        served.add(number)
        patch_export(opened.path, path, generation=3)
        assert files_of(path.parent) == full(made[2], two)
    assert served == {1, 3}
    assert (interim > 0) == two


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
