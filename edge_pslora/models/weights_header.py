"""The file of weights in base/, and how one that cannot be used is told of. No torch."""

from __future__ import annotations

from pathlib import Path

from edge_pslora.errors import ModelError

WEIGHTS_FILE = "model.safetensors"


def bad_weights(path: Path, found: str) -> ModelError:
    """The error of a weights file that cannot be used."""
    return ModelError(
        str(path),
        expected="a safetensors file with finite weights",
        found=found,
        remedy="give a .safetensors file",
    )
