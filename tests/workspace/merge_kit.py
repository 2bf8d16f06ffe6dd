"""Small bases and PEFT folders as files, and what merging them means, written out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from edge_pslora.workspace.tensors import write_tensors

BASE_SHAPES = {
    "encoder.q.weight": (6, 4),
    "encoder.q.bias": (6,),
    "encoder.conv.weight": (3, 2, 3, 3),
    "encoder.emb.weight": (7, 4),
    "encoder.norm.weight": (4,),
    "classifier.weight": (2, 6),
}


def make_base(path: Path, dtype=np.float32, rename=lambda name: name, seed=0) -> dict:
    rng = np.random.default_rng(seed)
    tensors = {
        rename(name): rng.normal(size=shape).astype(dtype) for name, shape in BASE_SHAPES.items()
    }
    tensors["steps"] = np.int64(7).reshape(())
    write_tensors(path, tensors, {"format": "pt"})
    return tensors


def factors(seed: int, rank: int = 2, scale: float = 0.3) -> dict:
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return (scale * rng.normal(size=shape)).astype(np.float32)

    return {
        "encoder.q.lora_A.weight": draw(rank, 4),
        "encoder.q.lora_B.weight": draw(6, rank),
        "encoder.conv.lora_A.weight": draw(rank, 2, 3, 3),
        "encoder.conv.lora_B.weight": draw(3, rank, 1, 1),
        "encoder.emb.lora_embedding_A": draw(rank, 7),
        "encoder.emb.lora_embedding_B": draw(4, rank),
    }


def make_adapter(folder: Path, tensors: dict, **config) -> Path:
    folder.mkdir()
    write_tensors(
        folder / "adapter_model.safetensors",
        {f"base_model.model.{name}": value for name, value in tensors.items()},
    )
    content = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["q"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(content))
    return folder


def literal_deltas(tensors: dict, scaling: float) -> dict:
    q = scaling * tensors["encoder.q.lora_B.weight"] @ tensors["encoder.q.lora_A.weight"]
    conv = scaling * np.einsum(
        "orxy,rihw->oihw",
        tensors["encoder.conv.lora_B.weight"],
        tensors["encoder.conv.lora_A.weight"],
    )
    a, b = tensors["encoder.emb.lora_embedding_A"], tensors["encoder.emb.lora_embedding_B"]
    return {
        "encoder.q.weight": q,
        "encoder.conv.weight": conv,
        "encoder.emb.weight": scaling * (b @ a).T,
    }
