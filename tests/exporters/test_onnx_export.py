"""The exported file: its weights, names, axes and bytes."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from edge_pslora.errors import ModelError, UsageError
from edge_pslora.exporters.onnx_export import LAYOUT_KEY, OnnxFiles, export_onnx
from edge_pslora.exporters.onnx_quiet import quiet_exporter
from edge_pslora.exporters.parity import check_parity

Inputs = dict[str, torch.Tensor]


class ConvNet(nn.Module):
    """Convolution, BatchNorm, depthwise convolution, ReLU6: what MobileNet is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU6(),
            nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU6(),
        )
        self.head = nn.Linear(16, 3)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.features(pixel_values).mean((2, 3)))
        return logits


class TextNet(nn.Module):
    """3-D Linear layers with equal weights, packed attention, a masked mean, an unused layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.up = nn.Linear(16, 16)
        self.down = nn.Linear(16, 16)
        self.norm = nn.LayerNorm(16)
        self.unused = nn.Linear(16, 16)
        self.head = nn.Linear(16, 4)
        with torch.no_grad():
            self.down.weight.copy_(self.up.weight)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        x = self.embed(input_ids)
        x = x + self.attention(x, x, x, key_padding_mask=attention_mask == 0)[0]
        x = self.norm(x + self.down(torch.relu(self.up(x))))
        mask = attention_mask.unsqueeze(-1).to(x.dtype)
        logits: torch.Tensor = self.head((x * mask).sum(1) / mask.sum(1).clamp(min=1.0))
        return logits


def conv_batch(size: int, pixels: int = 16) -> Inputs:
    return {"pixel_values": torch.randn(size, 3, pixels, pixels)}


def text_batch(size: int, length: int) -> Inputs:
    mask = torch.ones(size, length, dtype=torch.long)
    mask[0, length // 2 + 1 :] = 0
    return {"input_ids": torch.randint(0, 50, (size, length)), "attention_mask": mask}


@dataclass(frozen=True)
class Exported:
    model: nn.Module
    example: Inputs
    axes: dict[str, tuple[str, ...]]
    files: OnnxFiles
    batches: list[Inputs]

    def again(self, path: Path, **options: bool) -> OnnxFiles:
        return export_onnx(
            self.model, self.example, self.axes, path, metadata={"task": "t"}, **options
        )


def _export(kind: str, folder: Path) -> Exported:
    torch.manual_seed(0)
    model: nn.Module
    if kind == "conv":
        model, example = ConvNet(), conv_batch(2)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
        axes: dict[str, tuple[str, ...]] = {"pixel_values": ("batch",)}
        batches = [conv_batch(1), conv_batch(7)]
    else:
        model, example = TextNet(), text_batch(2, 2)
        axes = dict.fromkeys(example, ("batch", "sequence"))
        batches = [text_batch(size, length) for size in (1, 7) for length in (5, 64)]
    model.eval()
    path = folder / "model.onnx"
    files = export_onnx(model, example, axes, path, metadata={"task": "t"})
    return Exported(model, example, axes, files, batches)


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    return {kind: _export(kind, tmp_path_factory.mktemp(kind)) for kind in ("conv", "text")}


@pytest.fixture(params=["conv", "text"])
def exported(request: pytest.FixtureRequest, exports: dict[str, Exported]) -> Exported:
    return exports[request.param]


@pytest.fixture
def text(exports: dict[str, Exported]) -> Exported:
    return exports["text"]


@pytest.fixture
def conv(exports: dict[str, Exported]) -> Exported:
    return exports["conv"]


def test_runs_like_torch_at_other_sizes_and_lengths(exported: Exported) -> None:
    parity = check_parity(exported.model, exported.files.model, exported.batches, threads=1)
    assert parity.max_abs_error <= 1e-5
    assert parity.agreement == 1.0
    assert parity.batch_sizes == tuple(len(next(iter(b.values()))) for b in exported.batches)


def test_every_used_weight_is_stored_under_its_name_unchanged(exported: Exported) -> None:
    model = onnx.load(exported.files.model)
    state = exported.model.state_dict()
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    layout = json.loads({p.key: p.value for p in model.metadata_props}[LAYOUT_KEY])
    used = {
        name
        for name in state
        if not name.startswith("unused.") and not name.endswith("num_batches_tracked")
    }
    assert layout.keys() == exported.files.layout.keys() == used
    for name, entry in layout.items():
        assert entry == {"source": name, "transform": "identity"}
        assert np.array_equal(numpy_helper.to_array(stored[name]), state[name].numpy())
    constants = [name for name in stored if name not in layout]
    assert sorted(constants) == sorted(f"const_{k}" for k in range(len(constants)))


def test_a_patched_initializer_changes_the_output_as_the_weight_does(
    text: Exported, tmp_path: Path
) -> None:
    model = onnx.load(text.files.model)
    for tensor in model.graph.initializer:
        if tensor.name == "up.weight":  # used transposed, its values equal those of down.weight
            tensor.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(tensor), tensor.name))
    onnx.save(model, tmp_path / "patched.onnx")
    changed = TextNet().eval()
    changed.load_state_dict(text.model.state_dict())
    with torch.no_grad():
        changed.up.weight.mul_(2)
    parity = check_parity(changed, tmp_path / "patched.onnx", text.batches, threads=1)
    assert parity.max_abs_error <= 1e-5


def test_graph_interface_and_checker(exported: Exported) -> None:
    model = onnx.load(exported.files.model)
    onnx.checker.check_model(str(exported.files.model), full_check=True)
    assert [value.name for value in model.graph.input] == list(exported.example)
    assert [value.name for value in model.graph.output] == ["logits"]
    for value in model.graph.input:
        sizes = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        wanted = exported.axes[value.name]
        assert tuple(sizes[: len(wanted)]) == wanted
    assert {p.key: p.value for p in model.metadata_props}["task"] == "t"
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
    assert not model.functions


def test_no_notes_or_paths_in_the_file(exported: Exported) -> None:
    model = onnx.load(exported.files.model)
    noted = [
        item
        for item in (*model.graph.node, *model.graph.value_info, *model.graph.initializer)
        if item.doc_string or item.metadata_props
    ]
    assert not noted
    assert not model.graph.metadata_props
    del model.graph.initializer[:]
    text = model.SerializeToString()
    for part in (str(Path(__file__).parent), str(Path(torch.__file__).parent), ".py", sys.prefix):
        assert part.encode() not in text


def test_two_exports_have_the_same_bytes_and_nothing_is_printed(
    conv: Exported, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    again = conv.again(tmp_path / "other-name.onnx")
    assert again.model.read_bytes() == conv.files.model.read_bytes()
    assert capfd.readouterr() == ("", "")


def test_another_process_writes_the_same_bytes(text: Exported, tmp_path: Path) -> None:
    code = (
        "import importlib.util, pathlib, sys\n"
        "spec = importlib.util.spec_from_file_location('module_under_test', sys.argv[1])\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "sys.modules[spec.name] = module\n"
        "spec.loader.exec_module(module)\n"
        "module._export('text', pathlib.Path(sys.argv[2]))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, __file__, str(tmp_path)],
        env={"PYTHONHASHSEED": "77", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        timeout=120,
        check=True,
    )
    assert result.stdout == b""
    assert result.stderr == b""
    digests = [
        hashlib.sha256(p.read_bytes()).hexdigest()
        for p in (tmp_path / "model.onnx", text.files.model)
    ]
    assert digests[0] == digests[1]


def test_external_data_lies_in_one_file_beside(conv: Exported, tmp_path: Path) -> None:
    files = conv.again(tmp_path / "model.onnx", external_data=True)
    assert files.data == tmp_path / "model.onnx_data"
    assert sorted(tmp_path.iterdir()) == sorted(files.paths)
    model = onnx.load(files.model, load_external_data=False)
    places = [
        {entry.key: entry.value for entry in tensor.external_data}
        for tensor in model.graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
    ]
    assert places
    assert {place["location"] for place in places} == {"model.onnx_data"}
    assert all(int(place["offset"]) % 4096 == 0 for place in places)
    ends = max(int(place["offset"]) + int(place["length"]) for place in places)
    assert ends == files.data.stat().st_size
    assert check_parity(conv.model, files.model, conv.batches, threads=1).max_abs_error <= 1e-5


def test_unknown_warnings_and_lines_get_through(capfd: pytest.CaptureFixture[str]) -> None:
    def speak() -> None:
        with quiet_exporter():
            warnings.warn("something new", UserWarning, stacklevel=1)
            print("a line", file=sys.stderr)

    with pytest.warns(UserWarning, match="something new"):
        speak()
    assert capfd.readouterr().err == "a line\n"


class FixedBatch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(2, -1)


class LosesBatch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(0, keepdim=True)


@pytest.mark.parametrize("make", [FixedBatch, LosesBatch])
def test_models_that_cannot_be_exported_are_named(
    make: Callable[[], nn.Module], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ModelError, match="ONNX export"):
        export_onnx(
            make().eval(),
            {"x": torch.randn(2, 4)},
            {"x": ("batch",)},
            tmp_path / "model.onnx",
            metadata={},
        )
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_wrong_use_is_refused(tmp_path: Path) -> None:
    model, path = ConvNet(), tmp_path / "model.onnx"
    example, axes = conv_batch(2), {"pixel_values": ("batch",)}
    with pytest.raises(ModelError, match="training mode"):
        export_onnx(model, example, axes, path, metadata={})
    model.eval()
    with pytest.raises(UsageError, match="opset"):
        export_onnx(model, example, axes, path, metadata={}, opset=9)
    with pytest.raises(UsageError, match="metadata"):
        export_onnx(model, example, axes, path, metadata={LAYOUT_KEY: "x"})
    assert not list(tmp_path.iterdir())


def test_a_single_sample_as_example_still_gives_free_axes(tmp_path: Path) -> None:
    model = ConvNet().eval()
    files = export_onnx(
        model, conv_batch(1), {"pixel_values": ("batch",)}, tmp_path / "m.onnx", metadata={}
    )
    assert check_parity(model, files.model, [conv_batch(5)], threads=1).max_abs_error <= 1e-5
