"""A device that was updated by a bundle goes on learning, as the publisher would have."""

from __future__ import annotations

import hashlib

import pytest

from edge_pslora.config import AdaptConfig, TrainConfig
from edge_pslora.device.apply import Request, apply
from edge_pslora.errors import WorkspaceError
from edge_pslora.exporters.export_bundle import BundleOptions, export_bundle
from edge_pslora.pipeline.run import adapt
from edge_pslora.workspace.workspace import Workspace
from tests.pipeline.pipeline_kit import digits_npz
from tests.signing.signing_kit import keys_in

CONFIG = AdaptConfig(train=TrainConfig(epochs=1))


def sha256(workspace, name):
    generation = Workspace.open(workspace).current()
    return hashlib.sha256((generation.path / name).read_bytes()).hexdigest()


@pytest.mark.slow
def test_sessions_go_on_from_a_bundle(tmp_path):
    new, signers = keys_in(tmp_path / "keys")
    root = new.files[0].parent / "root.json"
    first = digits_npz(tmp_path / "first.npz", [0, 1], 60)
    second = digits_npz(tmp_path / "second.npz", [2, 3], 60)
    publisher, device, serving = (tmp_path / name for name in ("publisher", "device", "serving"))
    adapt(first, model="auto", workspace=publisher, config=CONFIG)
    for name, learn in (("learn", True), ("serve", False)):
        options = BundleOptions(kind="full", with_base=True, learn=learn)
        export_bundle(publisher, tmp_path / name, signers[:2], options, root=root)
    for path, name in ((device, "learn"), (serving, "serve")):
        report = apply(Request(path, str(tmp_path / name), root, accept=True))
        assert (report.generation, report.trial) == (1, "kept")
        assert sha256(path, "model.onnx") == sha256(publisher, "model.onnx")
    for path in (publisher, device):
        adapt(second, workspace=path, config=CONFIG)
    assert Workspace.open(device).current().number == 2
    for name in ("model.safetensors", "model.onnx", "history.safetensors", "head.safetensors"):
        assert sha256(device, name) == sha256(publisher, name)
    with pytest.raises(WorkspaceError, match="bundle --learn"):
        adapt(second, workspace=serving, config=CONFIG)
    assert Workspace.open(serving).current().number == 1
