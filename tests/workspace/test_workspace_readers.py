"""Readers during swaps never see two generations mixed; nothing that serves updates needs torch."""

from __future__ import annotations

import subprocess
import sys
import time

from edge_pslora.workspace.lock import writer_lock
from edge_pslora.workspace.tensors import read_tensors
from edge_pslora.workspace.workspace import Workspace
from tests.workspace import workspace_driver as driver

_WRITER = """
import sys, pathlib
sys.path.insert(0, sys.argv[1])
import workspace_driver as driver
from edge_pslora.workspace.lock import writer_lock
path = pathlib.Path(sys.argv[2])
workspace = driver.Workspace.open(path)
with writer_lock(path):
    while not (path.parent / "stop").exists():
        driver.add_generation(workspace, "x")
        workspace.rollback()
        workspace.rollback(workspace.generations()[-1])
"""


def test_thousands_of_reads_during_swaps_never_mix(tmp_path):
    path = tmp_path / "w"
    workspace = driver.make_workspace(path)
    with writer_lock(path):
        driver.add_generation(workspace)
        driver.add_generation(workspace)
    folder = str(driver.__file__).rsplit("/", 1)[0]
    seen = set()
    with subprocess.Popen([sys.executable, "-c", _WRITER, folder, str(path)]) as writer:
        deadline = time.monotonic() + 4.0
        reads = 0
        while time.monotonic() < deadline and reads < 3000:
            current = Workspace.open(path).current()
            assert current is not None
            for name in ("model.safetensors", "history.safetensors"):
                values = set(read_tensors(current.file(name))["w"].tolist())
                assert values == {float(current.number)}
            seen.add(current.number)
            reads += 1
        (tmp_path / "stop").touch()
    assert writer.returncode == 0
    assert len(seen) > 1  # swaps did happen meanwhile
    assert reads > 50


def test_serving_and_merging_load_no_heavy_package():
    code = (
        "import sys\n"
        "import edge_pslora.workspace.workspace, edge_pslora.workspace.lock\n"
        "import edge_pslora.merge_files, edge_pslora.core.merge\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'transformers', 'peft', 'PIL'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
