"""Files to merge: PEFT folders with random factors, and models that are nothing but tensors."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.core_updates import Shapes
from edge_pslora.workspace.tensor_header import DTYPES, TensorSpec
from edge_pslora.workspace.tensors import read_header, write_tensors, write_tensors_streaming

CODES = {"float32": "F32", "bfloat16": "BF16"}
# one block of a synthetic model; the largest tensor is adapted, a quarter of the bytes is not
BLOCK = {
    "query.weight": (2048, 2048),
    "value.weight": (2048, 2048),
    "up.weight": (4096, 2048),
    "cache.weight": (2688, 2048),
    "norm.weight": (2048,),
}
ADAPTED = ("query", "value", "up")
BLOCKS = 8


def write_adapter(folder: Path, shapes: Shapes, rank: int, seed: int) -> Path:
    """A PEFT folder that updates the modules of these names, weights [out, in]; returns it."""
    folder.mkdir()
    generator = np.random.default_rng(seed)
    tensors = {}
    for name, (out, size) in shapes.items():
        for part, shape in (("A", (rank, size)), ("B", (out, rank))):
            factor = 0.01 * generator.standard_normal(shape, dtype=np.float32)
            tensors[f"base_model.model.{name}.lora_{part}.weight"] = factor
    write_tensors(folder / "adapter_model.safetensors", tensors, {"format": "pt"})
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": None,
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": sorted(shapes),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def synthetic_model(path: Path, dtype: str, float32_bytes: int) -> dict[str, tuple[int, int]]:
    """Writes a model that takes about this many bytes in float32; the modules that may be adapted.

    dtype: float32 or bfloat16, which takes half as much.
    """
    per_block = 4 * sum(math.prod(shape) for shape in BLOCK.values())
    shrink = max(1.0, math.sqrt(BLOCKS * per_block / float32_bytes))
    blocks = max(1, round(float32_bytes / per_block)) if shrink == 1.0 else BLOCKS
    specs = {
        f"block.{i}.{name}": TensorSpec(CODES[dtype], tuple(round(n / shrink) for n in shape))
        for i in range(blocks)
        for name, shape in BLOCK.items()
    }
    generator = np.random.default_rng(0)

    def random(name: str) -> npt.NDArray[np.generic]:
        values = 0.04 * generator.standard_normal(specs[name].shape, dtype=np.float32)
        return values.astype(DTYPES[CODES[dtype]])

    write_tensors_streaming(path, specs, random, {"format": "pt"})
    return {
        f"block.{i}.{name}": (shape[0], shape[1])
        for i in range(blocks)
        for name in ADAPTED
        for shape in [specs[f"block.{i}.{name}.weight"].shape]
    }


def largest_tensor(path: Path) -> int:
    """Bytes of the largest tensor of a safetensors file."""
    return max(spec.bytes for spec in read_header(path).specs.values())
