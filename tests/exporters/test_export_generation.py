"""Exports of whole workspaces: verified copies, computed adapters, a folder that is ours or nothing."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_pslora.errors import EdgePsloraError, UsageError, WorkspaceError
from edge_pslora.exporters.export import WRITERS, ExportResult, export_generation
from edge_pslora.exporters.export_options import ExportOptions, Format
from edge_pslora.exporters.lora_factors import (
    LoraFactors,
    factors_from_matrices,
    transposes,
)
from edge_pslora.exporters.peft_adapter import read_peft_adapter, write_peft_adapter
from edge_pslora.exporters.peft_format import AdapterConfig
from edge_pslora.workspace.manifest import Manifest
from edge_pslora.workspace.tensors import read_tensors, write_tensors
from edge_pslora.workspace.workspace import Workspace

SHAPES = {
    "fc": ("linear", "model.fc.weight", (6, 8)),
    "conv": ("conv2d", "model.conv.weight", (4, 3, 3, 3)),
    "series": ("conv1d", "model.series.weight", (4, 3, 5)),
    "c_attn": ("transposed_linear", "model.c_attn.weight", (6, 9)),
    "c_proj": ("transposed_linear", "model.c_proj.weight", (6, 6)),
    "embed": ("embedding", "model.embed.weight", (12, 5)),
    "attention": ("mha_in_proj", "model.attention.in_proj_weight", (12, 4)),
}


def base_tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    tensors = {
        name: rng.normal(size=shape).astype(np.float32) for _, name, shape in SHAPES.values()
    }
    return {**tensors, "model.norm.weight": np.ones(8, np.float32)}


def layers_of(session: int, paths: tuple[str, ...] = tuple(SHAPES)) -> dict[str, LoraFactors]:
    rng = np.random.default_rng([1, session])
    layers = {}
    for path in paths:
        kind, _, shape = SHAPES[path]
        out, size = (shape[1], shape[0]) if transposes(kind) else (shape[0], None)
        size = size or int(np.prod(shape[1:]))
        A, B = rng.normal(size=(2, size)), rng.normal(size=(out, 2))
        layers[path] = factors_from_matrices(
            kind, A.astype(np.float32), B.astype(np.float32), 0.5, shape
        )
    return layers


def publish(
    opened: Workspace,
    tensors: dict[str, np.ndarray],
    layers: dict[str, LoraFactors],
    bias: float = 0.0,
) -> dict[str, np.ndarray]:
    """One more generation whose weights are `tensors` plus the updates of `layers`."""
    staged = opened.begin(hashlib.sha256(str(len(layers)).encode()).hexdigest())
    folder = staged.folder
    merged = dict(tensors)
    for path, layer in layers.items():
        merged[SHAPES[path][1]] = merged[SHAPES[path][1]] + layer.delta()
    write_tensors(folder / "model.safetensors", merged, {"format": "pt"})
    head = {
        "weight": np.ones((2, 8), np.float32),
        "bias": np.full(2, bias, np.float32),
        "gram": np.eye(9, dtype=np.float32),
    }
    write_tensors(folder / "head.safetensors", head, {"labels": '["no","yes"]'})
    (folder / "model.onnx").write_bytes(b"graph %d" % staged.number)
    (folder / "model.onnx_data").write_bytes(b"weights" * 999)
    if layers:
        (folder / "adapter").mkdir()
        write_peft_adapter(folder / "adapter", layers, AdapterConfig(2, 1.0), sidecar={"n": 1})
    current = opened.current()
    manifest = Manifest(
        number=staged.number,
        parent=None if current is None else current.number,
        task="t",
        created="2026-01-31T12:00:00Z",
        data_digest="",
        base_digest=opened.header.base_digest,
        labels=("no", "yes"),
    )
    opened.publish(folder, manifest)
    return merged


def new_workspace(path: Path, **options: Any) -> Workspace:
    path.mkdir()
    base = Workspace.stage_base(path)
    write_tensors(base / "model.safetensors", base_tensors(), {"format": "pt"})
    (base / "config.json").write_text('{"model_type": "tiny"}')
    (base / "tokenizer.json").write_text("{}")
    source: dict[str, Any] = {
        "kind": "huggingface",
        "modality": "text",
        "reference": "tiny",
        "options": {"head_module": None, "head_labels": None, **options},
    }
    return Workspace.create(path, base, task_type="classification", labels=(), source=source)


@pytest.fixture
def opened(tmp_path: Path) -> Workspace:
    """A workspace with two generations; the second adapted fewer layers and one norm."""
    opened = new_workspace(tmp_path / "w")
    merged = publish(opened, base_tensors(), layers_of(1))
    merged["model.norm.weight"] = merged["model.norm.weight"] * 2
    publish(opened, merged, layers_of(2, ("fc", "conv")))
    return opened


def test_onnx_files_are_the_published_ones(opened: Workspace, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = export_generation(opened.path, out, ExportOptions("onnx"))
    assert sorted(p.name for p in out.iterdir()) == [
        "config.json",
        "export.json",
        "labels.json",
        "model.onnx",
        "model.onnx_data",
        "tokenizer.json",
    ]
    assert result.files == tuple(str(p) for p in sorted(out.iterdir()))
    assert result.generation == 2
    assert (out / "model.onnx").read_bytes() == b"graph 2"
    assert (out / "model.onnx_data").read_bytes() == b"weights" * 999
    assert json.loads((out / "labels.json").read_text()) == {
        "labels": ["no", "yes"],
        "task_type": "classification",
    }
    record = json.loads((out / "export.json").read_text())
    assert record["generation"] == 2
    for name, entry in record["files"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == entry["sha256"]
    json.dumps(result.to_dict())


def test_safetensors_folder_and_the_head_without_statistics(
    opened: Workspace, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    export_generation(opened.path, out, ExportOptions("safetensors"), generation=1)
    assert sorted(p.name for p in out.iterdir()) == [
        "README.md",
        "config.json",
        "export.json",
        "head.safetensors",
        "labels.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    source = opened.generation(1).path / "model.safetensors"
    assert (out / "model.safetensors").read_bytes() == source.read_bytes()
    assert read_tensors(out / "head.safetensors").keys() == {"weight", "bias"}


@pytest.mark.parametrize("taken_over", [True, False])
def test_config_names_the_labels_of_a_classifier_that_was_taken_over(
    tmp_path: Path, taken_over: bool
) -> None:
    head_labels = ["no"] if taken_over else None
    opened = new_workspace(tmp_path / "w", head_module="classifier", head_labels=head_labels)
    publish(opened, base_tensors(), layers_of(1))
    export_generation(opened.path, tmp_path / "out", ExportOptions("safetensors"))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == "tiny"
    assert config.get("id2label") == ({"0": "no", "1": "yes"} if taken_over else None)


def test_the_first_generation_gives_its_own_adapter(opened: Workspace, tmp_path: Path) -> None:
    result = export_generation(opened.path, tmp_path / "out", ExportOptions("peft"), generation=1)
    assert result.facts["max_relative_error"] == 0.0
    assert result.facts["left_out"] == []
    for path in (opened.generation(1).path / "adapter").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def test_a_later_generation_gives_merged_minus_base(opened: Workspace, tmp_path: Path) -> None:
    result = export_generation(opened.path, tmp_path / "out", ExportOptions("peft"))
    assert result.facts["max_relative_error"] <= 1e-3
    assert result.facts["left_out"] == ["model.norm.weight"]
    before = base_tensors()
    after = read_tensors(opened.generation(2).path / "model.safetensors")
    adapter = read_peft_adapter(tmp_path / "out")
    assert set(adapter.layers) == set(SHAPES)  # those of session 1 too
    for path, layer in adapter.layers.items():
        kind, name, _ = SHAPES[path]
        assert layer.kind == kind
        delta = after[name] - before[name]
        assert np.linalg.norm(layer.delta() - delta) <= 1.1e-3 * np.linalg.norm(delta)
        assert layer.rank <= 4


def test_a_small_rank_leaves_an_error_and_says_so(opened: Workspace, tmp_path: Path) -> None:
    result = export_generation(opened.path, tmp_path / "out", ExportOptions("peft", max_rank=1))
    adapter = read_peft_adapter(tmp_path / "out")
    before = base_tensors()
    after = read_tensors(opened.generation(2).path / "model.safetensors")
    errors = []
    for path, layer in adapter.layers.items():
        delta = after[SHAPES[path][1]] - before[SHAPES[path][1]]
        errors.append(np.linalg.norm(layer.delta() - delta) / np.linalg.norm(delta))
        assert layer.rank == 1
    assert result.facts["max_relative_error"] == pytest.approx(max(errors), rel=1e-3)
    assert max(errors) > 1e-3


def test_a_head_only_generation_has_no_adapter(tmp_path: Path) -> None:
    opened = new_workspace(tmp_path / "w")
    publish(opened, base_tensors(), {})
    with pytest.raises(UsageError, match="only the head"):
        export_generation(opened.path, tmp_path / "out", ExportOptions("peft"))
    assert not (tmp_path / "out").exists()


# the others need the model, or (delta: test_pipeline_delta.py) a generation that was trained
@pytest.mark.parametrize("format_name", sorted(WRITERS.keys() - {"delta"}))
def test_the_same_export_twice_gives_the_same_bytes(
    opened: Workspace, tmp_path: Path, format_name: Format
) -> None:
    for name in ("one", "two"):
        export_generation(opened.path, tmp_path / name, ExportOptions(format_name))
    for path in (tmp_path / "one").iterdir():
        assert (tmp_path / "two" / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize(
    ("format_name", "name"),
    [
        ("onnx", "model.onnx"),
        ("onnx", "model.onnx_data"),
        ("safetensors", "model.safetensors"),
        ("safetensors", "head.safetensors"),
        ("peft", "model.safetensors"),
        ("peft", "adapter/adapter_model.safetensors"),
    ],
)
def test_a_flipped_bit_is_never_exported(
    opened: Workspace, tmp_path: Path, format_name: Format, name: str
) -> None:
    path = opened.generation(2).path / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(WorkspaceError):
        export_generation(opened.path, tmp_path / "out", ExportOptions(format_name))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["w"]


def test_a_flipped_bit_in_the_base_is_found(opened: Workspace, tmp_path: Path) -> None:
    (opened.base / "tokenizer.json").write_text("[]")
    with pytest.raises(WorkspaceError, match="sha256"):
        export_generation(opened.path, tmp_path / "out", ExportOptions("onnx"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["w"]


def test_an_empty_folder_is_used(opened: Workspace, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    export_generation(opened.path, tmp_path / "out", ExportOptions("onnx"))
    assert (tmp_path / "out" / "model.onnx").is_file()


def test_a_used_folder_is_replaced_only_when_asked_and_only_an_export(
    opened: Workspace, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def export(**options: Any) -> ExportResult:
        return export_generation(opened.path, out, ExportOptions("onnx"), **options)

    export(generation=1)
    with pytest.raises(UsageError, match="--overwrite"):
        export()
    assert (out / "model.onnx").read_bytes() == b"graph 1"
    export_generation(opened.path, out, ExportOptions("peft"), overwrite=True)
    assert not (out / "model.onnx").exists()
    (out / "mine.txt").write_text("keep me")
    with pytest.raises(UsageError, match=r"mine\.txt"):
        export(overwrite=True)
    assert (out / "mine.txt").read_text() == "keep me"
    assert (out / "adapter_config.json").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "w"]


def test_a_failed_replacement_leaves_the_earlier_export(
    opened: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    export_generation(opened.path, out, ExportOptions("onnx"), generation=1)

    def fail(staged: Path, final: Path) -> None:
        raise EdgePsloraError(str(final), expected="a disk", found="none", remedy="buy one")

    monkeypatch.setattr("edge_pslora.workspace.durable.publish_folder", fail)
    with pytest.raises(EdgePsloraError, match="buy one"):
        export_generation(opened.path, out, ExportOptions("onnx"), overwrite=True)
    assert (out / "model.onnx").read_bytes() == b"graph 1"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "w"]


def test_places_that_cannot_be_used(opened: Workspace, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for out in (
        opened.path,
        opened.path / "generations" / "000001",
        tmp_path / "file",
        tmp_path / "link",
        tmp_path / "no" / "parent",
    ):
        with pytest.raises(UsageError):
            export_generation(opened.path, out, ExportOptions("onnx"), overwrite=True)
    assert opened.generation(1).verify() is None


def test_wrong_choices(opened: Workspace, tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="generation 9"):
        export_generation(opened.path, tmp_path / "out", ExportOptions("onnx"), generation=9)
    with pytest.raises(UsageError):
        export_generation(opened.path, tmp_path / "out", ExportOptions("gguf"))  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        export_generation(opened.path, tmp_path / "out", ExportOptions("peft", max_rank=0))
    empty = new_workspace(tmp_path / "empty")
    with pytest.raises(UsageError, match="none"):
        export_generation(empty.path, tmp_path / "out", ExportOptions("onnx"))
    assert not (tmp_path / "out").exists()


def test_export_imports_no_torch(opened: Workspace, tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\n"
        "for name in ('torch', 'onnx', 'onnxruntime', 'transformers', 'peft'):\n"
        "    sys.modules[name] = None\n"
        "from edge_pslora.exporters.export import export_generation\n"
        "from edge_pslora.exporters.export_options import ExportOptions\n"
        "export_generation(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), ExportOptions('peft'))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(opened.path), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
