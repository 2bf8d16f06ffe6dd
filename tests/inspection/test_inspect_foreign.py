"""Inspecting a torch.export file, and a folder whose weights lie in shards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from edge_pslora.data.options import ReadOptions
from edge_pslora.errors import ModelError
from edge_pslora.inspection.facts import ModelFacts
from edge_pslora.inspection.source import inspect_source
from edge_pslora.models.options import ModelOptions
from tests.models.pt2_kit import new_net, save
from tests.pipeline import hf_kit


def _inspect(source: Path, *targets: str) -> ModelFacts:
    facts = inspect_source(
        str(source),
        read=ReadOptions(),
        model_options=ModelOptions(),
        targets=targets or ("auto",),
        rank=2,
    )
    assert isinstance(facts, ModelFacts)
    return facts


def test_an_exported_file(tmp_path: Path) -> None:
    path = save(tmp_path, new_net(), torch.randn(2, 1, 4, 4))
    facts = _inspect(path, "stem", "block.linear1")
    assert (facts.kind, facts.family) == ("exported", "torch.export file")
    assert [(t.name, t.kind, t.shape) for t in facts.targets] == [
        ("stem", "conv2d", (8, 9)),
        ("block.linear1", "linear", (16, 8)),
    ]
    assert facts.trained == 2 * (8 + 9 + 16 + 8)
    assert facts.notes[0].startswith("One sample: float32 [1, 4, 4].")
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ModelError, match=r"net\.pt2"):
        _inspect(path)


def test_shards_say_what_one_file_says(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    base = hf_kit.bert_folder(tmp_path / "bert")
    whole = _inspect(base)
    model = transformers.BertModel.from_pretrained(base)
    (base / "model.safetensors").unlink()
    model.save_pretrained(base, max_shard_size="20KB")
    shards = _inspect(base)
    assert replace(shards, bytes=0) == replace(whole, bytes=0)
    assert shards.bytes >= whole.bytes
    next(base.glob("model-*.safetensors")).unlink()
    with pytest.raises(ModelError, match="every shard of the index"):
        _inspect(base)
