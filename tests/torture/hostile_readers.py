"""What a user's command does with a model, an adapter, a graph or a record, and whether it is harmless.

Each takes the folder in which the files of its task lie; it raises EdgePsloraError or returns.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edge_pslora.errors import WorkspaceError

_TEXTS = ["water and rain", "the ball", "rain", "a goal and the ball"]


def read_model(folder: Path) -> None:
    from edge_pslora.errors import ModelError
    from edge_pslora.models.weights import read_weights
    from edge_pslora.workspace.tensors import read_tensors

    tensors = read_weights(folder / "m.safetensors")
    ours = read_tensors(folder / "m.safetensors", error=ModelError)
    assert tensors.keys() == ours.keys()
    assert all(tuple(tensors[name].shape) == array.shape for name, array in ours.items())


def merge(folder: Path) -> None:
    from edge_pslora.merge_files import merge

    merge([folder / "ad"], folder / "base.safetensors", folder / "out.safetensors")
    _finite_file(folder / "out.safetensors")


def merge_command(folder: Path) -> list[str]:
    base, out = folder / "base.safetensors", folder / "out.safetensors"
    return ["merge", str(folder / "ad"), "--base", str(base), "--out", str(out)]


def _finite_file(path: Path) -> None:
    from edge_pslora.workspace.tensors import read_tensors

    read_tensors(path)


def _stored(path: Path, *, finite: bool = True) -> Any:
    from edge_pslora.training.stored import Stored
    from edge_pslora.workspace.tensors import open_tensors

    with open_tensors(path) as file:
        arrays = {name: file.read(name, finite=finite) for name in file.names}
        return Stored(arrays, file.header.metadata)


def read_history(folder: Path) -> None:
    from edge_pslora.training.persist import history_from_arrays

    path = folder / "history.safetensors"
    for layer in history_from_arrays(_stored(path), str(path)).values():
        assert np.isfinite([layer.eps, layer.frobenius]).all()
        assert min(layer.shape) >= 0


def read_head(folder: Path) -> None:
    from edge_pslora.training.persist_head import head_from_arrays

    path = folder / "head.safetensors"
    head = head_from_arrays(_stored(path), str(path))
    assert head.weight.shape[0] == len(head.bias) == len(head.labels)
    assert head.weight.isfinite().all()
    assert head.weight.is_floating_point()


def read_anchor(folder: Path) -> None:
    from edge_pslora.training.persist import anchors_from_arrays

    path = folder / "anchor.safetensors"
    anchors = anchors_from_arrays(_stored(path, finite=False), str(path))
    assert len({len(a) for a in (*anchors.inputs.values(), anchors.targets, anchors.session)}) == 1


def replay(folder: Path) -> None:
    from edge_pslora.update.replay import replay

    replay(
        folder / "delta.safetensors", folder / "base.safetensors", None, folder / "out.safetensors"
    )


def try_onnx(folder: Path) -> None:
    from edge_pslora.exporters.onnx_trial import try_onnx

    try_onnx(folder / "model.onnx", seconds=5.0)


def open_onnx(folder: Path) -> None:
    from edge_pslora.exporters.onnx_read import open_model

    with open_model(folder / "model.onnx") as file:
        assert all(weight.nbytes >= 0 for weight in file.weights.values())


def open_pt2(folder: Path) -> None:
    import torch

    from edge_pslora.models.exported import import_exported
    from edge_pslora.models.options import ModelOptions

    samples = samples_of("array", np.zeros((4, 2), np.float32))
    out = folder / "out"
    out.mkdir()
    with torch.no_grad():
        import_exported(folder / "net.pt2", samples, ModelOptions(), out)


def samples_of(modality: Any, inputs: Any) -> Any:
    from edge_pslora.data.types import Samples

    return Samples(modality, "classification", inputs, np.array(["x", "y", "x", "y"]))


def import_text(folder: Path) -> None:
    from edge_pslora.models.huggingface import import_folder
    from edge_pslora.models.options import ModelOptions

    out = folder / "out"
    out.mkdir()
    import_folder(folder / "hf", samples_of("text", _TEXTS), ModelOptions(), out)


def open_tokenizer(folder: Path) -> None:
    import torch

    from edge_pslora.models.encode_text import TextEncoder
    from edge_pslora.models.hf_folder import copy_folder
    from edge_pslora.models.hf_parts import load_tokenizer

    out = folder / "out"
    out.mkdir()
    copy_folder(folder / "hf", out)
    encoder = load_tokenizer(out, torch.nn.Embedding(10_000, 2), 16, "hf")
    assert isinstance(encoder, TextEncoder)
    assert len(encoder.encode(samples_of("text", _TEXTS))) == len(_TEXTS)


def shards(folder: Path) -> None:
    from edge_pslora.models.hf_folder import check_folder
    from edge_pslora.models.hf_shards import write_merged
    from edge_pslora.models.weights import read_weights

    check_folder(folder / "hf")
    write_merged(folder / "hf", folder / "out.safetensors")
    read_weights(folder / "out.safetensors")


def status(folder: Path) -> Mapping[str, Any]:
    from edge_pslora.workspace.workspace import Workspace

    return Workspace.open(folder / "w").status(verify=True)


def read_manifest(folder: Path) -> None:
    from edge_pslora.workspace import manifest
    from edge_pslora.workspace.layout import generation_folder

    content, _ = manifest.read(generation_folder(folder / "w", 1))
    assert manifest.decode(manifest.encode(content), "again") == content


def read_run(folder: Path) -> None:
    from edge_pslora.workspace.staging import read_run

    found = read_run(folder / "w", 2)  # None: another run begins, and nothing of this one is used
    assert found is None or (isinstance(found[0], str) and (found[1] is None or found[1] >= 0))


def read_state(folder: Path) -> None:
    from edge_pslora.workspace.update_state import read_state, replace_state

    state = read_state(folder / "w")
    if state is None:
        raise WorkspaceError("state", expected="x", found="y", remedy="z")
    replace_state(folder / "w", state)
    assert read_state(folder / "w") == state


def read_bundle(folder: Path) -> None:
    from edge_pslora.errors import BundleError
    from edge_pslora.update import bundle
    from edge_pslora.workspace.reading import read_limited

    data = read_limited(folder / "bundle.json", bundle.MAX_BUNDLE, error=BundleError)
    assert bundle.decode(bundle.encode(bundle.decode(data, "b")), "again") is not None
