"""Models that torch.export cannot take: where it failed is named, the other exporter is tried and said."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from edge_pslora.config import GateConfig
from edge_pslora.errors import GateRefusedError, ModelError
from edge_pslora.exporters.onnx_export import EXPORTER_KEY, LAYOUT_KEY, OnnxFiles, export_onnx
from edge_pslora.exporters.onnx_quiet import quiet_tracer
from edge_pslora.exporters.parity import check_parity
from edge_pslora.pipeline.proving import prove_export
from edge_pslora.tasks import TASKS
from tests.tiny import ArrayInputs

HERE = Path(__file__).name
AXES = {"x": ("batch",)}


class Careful(nn.Module):
    """A guard against NaN, as people write it: what it decides depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.isnan(x).any():  # the guard
            x = torch.nan_to_num(x)
        y: torch.Tensor = self.fc(x)
        return y


class Guarded(nn.Module):
    """The guard deep inside; a BatchNorm after a Linear; two weights of equal value; one unused."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 4), Careful(), nn.Linear(4, 4)])
        self.norm = nn.BatchNorm1d(4)
        self.unused = nn.Linear(4, 4)
        with torch.no_grad():
            self.blocks[2].weight.copy_(self.blocks[0].weight)  # type: ignore[arg-type]
            self.norm.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        y: torch.Tensor = self.norm(x)
        return y


class OneByOne(nn.Module):
    """As many steps as there are samples."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.fc(row) for row in x.split(1)])  # the loop


class Looping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 4), OneByOne()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.blocks[1](self.blocks[0](x))
        return y


class Branching(nn.Module):
    """The same either way, but torch.export has to take one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] == 2:  # the branch
            x = x * 1.0
        y: torch.Tensor = self.fc(x)
        return y


class Bessel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wave = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(self.wave(x))  # the operator


class Rare(nn.Module):
    """Another way for one sample in many."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.fc(x)
        return -y if x.max() > 100 else y


class OneSize(nn.Module):
    """As transformers' patch embeddings: any other size of picture is an error."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 4, 4)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        if pixel_values.shape[-2] != 8:
            raise ValueError("image size must be 8")  # the size
        y: torch.Tensor = self.convolution(pixel_values).mean((2, 3))
        return y


class Called(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.model(pixel_values)
        return y


def line_of(comment: str) -> int:
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    return next(i for i, line in enumerate(lines, 1) if line.endswith(f"  # {comment}"))


def export(model: nn.Module, path: Path, **options: int) -> OnnxFiles:
    example = {"x": torch.randn(2, 4, generator=torch.Generator().manual_seed(0))}
    return export_onnx(model.eval(), example, AXES, path, metadata={"task": "t"}, **options)


@pytest.fixture(scope="module")
def guarded() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return Guarded().eval()


def test_the_other_exporter_keeps_names_weights_and_bytes(
    guarded: nn.Module, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    files = export(guarded, tmp_path / "model.onnx")
    assert capfd.readouterr() == ("", "")
    place = f"blocks.1 ({HERE}:{line_of('the guard')})"
    (note,) = files.notes
    assert "torch.export could not take the model" in note
    assert "`if torch.isnan(x).any():" in note
    assert place in note
    assert f"What Python decided at {HERE}:{line_of('the guard')} is fixed" in note

    model = onnx.load(files.model)
    onnx.checker.check_model(model, full_check=True)
    metadata = {p.key: p.value for p in model.metadata_props}
    assert metadata[EXPORTER_KEY] == "tracing"
    assert metadata.keys() == {"task", LAYOUT_KEY, EXPORTER_KEY}
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
    sizes = [
        [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    ]
    assert sizes == [["batch", 4], ["batch", 4]]
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["x", "logits"]

    state = guarded.state_dict()
    used = {n for n in state if not n.startswith("unused.") and "num_batches" not in n}
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert files.layout.keys() == used
    for name in used:  # two are equal, and a BatchNorm follows: neither merged nor folded
        assert np.array_equal(stored[name], state[name].numpy()), name
    text = model.SerializeToString()
    for part in (str(Path(__file__).parent), str(Path(torch.__file__).parent), sys.prefix):
        assert part.encode() not in text

    batches = [{"x": torch.randn(size, 4)} for size in (1, 7)]
    assert check_parity(guarded, files.model, batches, threads=1).max_abs_error <= 1e-5
    again = export(guarded, tmp_path / "again.onnx", external_data=True)
    assert again.data is None  # no weight of 1024 bytes
    assert again.model.read_bytes() == files.model.read_bytes()


def test_a_branch_on_a_size_is_traced_and_named(tmp_path: Path) -> None:
    model = Branching().eval()
    files = export(model, tmp_path / "model.onnx")
    place = f"{HERE}:{line_of('the branch')}"
    assert f"in the model ({place})" in files.notes[0]
    assert f"What Python decided at {place} is fixed" in files.notes[0]
    parity = check_parity(model, files.model, [{"x": torch.randn(5, 4)}], threads=1)
    assert parity.max_abs_error <= 1e-6


@pytest.mark.parametrize(
    ("model", "where", "first", "second"),
    [
        (Looping(), ("blocks.1", "the loop"), "x.split(1)", "the graph is for one size"),
        (Bessel(), ("the model", "the operator"), "bessel_j0", "aten::special_bessel_j0"),
    ],
)
def test_what_neither_can_names_both_reasons_and_the_place(
    model: nn.Module,
    where: tuple[str, str],
    first: str,
    second: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ModelError) as caught:
        export(model, tmp_path / "model.onnx")
    module, comment = where
    assert caught.value.where == f"ONNX export, {module} ({HERE}:{line_of(comment)})"
    one, _, other = caught.value.found.partition("; tracing: ")
    assert first in one
    assert second in other
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_a_size_of_picture_that_the_model_insists_on(tmp_path: Path) -> None:
    call = Called(nn.Sequential(OneSize(), nn.Linear(4, 2))).eval()
    axes = {"pixel_values": ("batch", "", "height", "width")}
    with pytest.raises(ModelError) as caught:
        export_onnx(
            call, {"pixel_values": torch.ones(2, 3, 8, 8)}, axes, tmp_path / "m", metadata={}
        )
    assert caught.value.where == f"ONNX export, model.0 ({HERE}:{line_of('the size')})"
    assert caught.value.found.startswith("another size of the axis height: ValueError: image size")
    files = export_onnx(
        call,
        {"pixel_values": torch.ones(2, 3, 8, 8)},
        {"pixel_values": ("batch", "", "", "width")},
        tmp_path / "wide.onnx",
        metadata={},
    )
    (value,) = onnx.load(files.model).graph.input
    sizes = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
    assert sizes == ["batch", 3, 8, "width"]


def test_the_other_exporter_ends_at_opset_20(guarded: nn.Module, tmp_path: Path) -> None:
    assert export(guarded, tmp_path / "20.onnx", opset=20).notes
    with pytest.raises(ModelError, match=r"isnan.*tracing: tracing writes opset 20 at most"):
        export(guarded, tmp_path / "21.onnx", opset=21)


def test_a_traced_file_is_proven_on_more_samples(tmp_path: Path) -> None:
    model = Rare().eval()
    files = export(model, tmp_path / "model.onnx")
    assert files.notes
    rows = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    rows[150, 0] = 1000.0
    arguments = (model, files.model, ArrayInputs(rows), GateConfig(), TASKS["classification"])
    prove_export(*arguments)  # the first and the last eight do not show it
    with pytest.raises(GateRefusedError, match="outputs equal to torch's"):
        prove_export(*arguments, traced=True)


def test_other_warnings_get_through() -> None:
    def speak() -> None:
        with quiet_tracer():
            warnings.warn("something new", UserWarning, stacklevel=1)

    with pytest.warns(UserWarning, match="something new"):
        speak()
