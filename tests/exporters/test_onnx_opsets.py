"""Every opset that can be chosen: the file says so, loads in onnxruntime and computes what torch does."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edge_pslora.errors import ModelError
from edge_pslora.exporters import onnx_export
from edge_pslora.exporters.export_options import OPSETS
from edge_pslora.exporters.onnx_export import export_onnx
from edge_pslora.exporters.parity import check_parity
from edge_pslora.pipeline import export_remade

# what is written differently from one opset to the next: these have an operator of their own from it on
OPERATORS = {"Gelu": 20, "Attention": 23}


class Mixed(nn.Module):
    """Attention with a mask, GELU, norms, a convolution: small, since it is exported six times."""

    def __init__(self, queries: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.project = nn.Linear(16, 16)
        self.norm = nn.LayerNorm(16)
        self.convolution = nn.Conv1d(16, 16, 3, padding=1)
        self.batch_norm = nn.BatchNorm1d(16)
        self.head = nn.Linear(16, 3)
        self.queries = queries

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        x = self.embed(input_ids)
        heads = self.project(x).unflatten(-1, (2, 8)).transpose(1, 2)
        mask = (attention_mask != 0)[:, None, None, :]
        if self.queries:
            mask = mask.expand(-1, 1, input_ids.shape[1], -1)
        seen = nn.functional.scaled_dot_product_attention(heads, heads, heads, attn_mask=mask)
        x = nn.functional.gelu(self.norm(x + seen.transpose(1, 2).flatten(2))).transpose(1, 2)
        x = torch.relu(self.batch_norm(self.convolution(x)))
        logits: torch.Tensor = self.head(x.mean(-1))
        return logits


def batch(size: int, length: int) -> dict[str, torch.Tensor]:
    mask = torch.ones(size, length, dtype=torch.long)
    mask[0, length // 2 + 1 :] = 0
    return {"input_ids": torch.randint(0, 50, (size, length)), "attention_mask": mask}


class RowsOfIds:
    """As EncodedInputs."""

    def __len__(self) -> int:
        return 9

    def lengths(self) -> np.ndarray:
        return np.ones(9, np.int64)

    def batch(self, indices: np.ndarray) -> dict[str, torch.Tensor]:
        return batch(len(indices), 5)


AXES = dict.fromkeys(("input_ids", "attention_mask"), ("batch", "sequence"))


@pytest.mark.parametrize("opset", OPSETS)
def test_an_opset(opset: int, tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = Mixed().eval()
        example, others = batch(2, 6), [batch(1, 5), batch(7, 9)]
    path = tmp_path / "model.onnx"
    files = export_onnx(model, example, AXES, path, metadata={}, opset=opset)
    assert files.notes == ()
    written = onnx.load(path)
    assert [(o.domain, o.version) for o in written.opset_import] == [("", opset)]
    onnx.shape_inference.infer_shapes(written, check_type=True, strict_mode=True, data_prop=True)
    (logits,) = written.graph.output
    sizes = [d.dim_param or d.dim_value for d in logits.type.tensor_type.shape.dim]
    assert sizes == ["batch", 3]
    parity = check_parity(model, path, others, threads=1)
    assert parity.max_abs_error <= 1e-5
    found = {node.op_type for node in written.graph.node}
    for name, since in OPERATORS.items():
        assert (name in found) == (opset >= since), name


def test_a_graph_that_onnxruntime_cannot_run_is_refused(tmp_path: Path) -> None:
    """onnxruntime 1.32 does not spread a mask over the queries, as opset 23 says it should."""
    model = Mixed(queries=False).eval()
    path = tmp_path / "model.onnx"
    files = export_onnx(model, batch(2, 6), AXES, path, metadata={}, opset=23)
    inputs = RowsOfIds()
    opened = SimpleNamespace(
        classifier=model,
        model=SimpleNamespace(dynamic_axes=AXES),
        held=SimpleNamespace(inputs=inputs),
        memory=SimpleNamespace(head=SimpleNamespace(task_type="classification")),
    )
    with pytest.raises(ModelError, match=r"--opset 23: expected a file that onnxruntime can run"):
        export_remade._prove(opened, files, "--opset 23")  # type: ignore[arg-type]


def test_a_graph_of_another_opset_than_was_asked_for_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(request: onnx_export.Request) -> object:
        program = real(request)
        program.graph.opset_imports[""] = 18  # what torch leaves where it cannot convert
        return program

    real = onnx_export.by_export
    monkeypatch.setattr(onnx_export, "by_export", other)
    with pytest.raises(
        ModelError, match=r"a graph of opset 19.*found opset 18.*leave --opset away"
    ):
        export_onnx(
            nn.Linear(4, 4).eval(),
            {"input": torch.ones(2, 4)},
            {"input": ("batch",)},
            tmp_path / "model.onnx",
            metadata={},
            opset=19,
        )
    assert not list(tmp_path.iterdir())
