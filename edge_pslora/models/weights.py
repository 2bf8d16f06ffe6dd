"""Weights of a base model: read from safetensors, checked against a module by name and shape."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save
from torch import nn

from edge_pslora.errors import ModelError
from edge_pslora.models.weights_header import bad_weights
from edge_pslora.workspace.tensors import open_tensors

# types that numpy has from ml_dtypes and torch under names of its own
_BY_BITS = {
    "bfloat16": torch.bfloat16,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
}
_PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file, in the file's dtypes.

    Read piece by piece and not mapped: a file that is cut meanwhile is an error, and no SIGBUS.

    Raises:
        ModelError: not a safetensors file, damaged, a name twice, or a value that is not finite.
    """
    if path.suffix in _PICKLED:
        raise bad_weights(path, f"a {path.suffix} file, which may hold a pickle")
    if path.is_dir() or not os.path.lexists(path):
        raise bad_weights(path, "a folder" if path.is_dir() else "no such file")
    with open_tensors(path, error=ModelError) as file:
        tensors = {name: _tensor(file.read(name, finite=True)) for name in file.names}
    if not tensors:
        raise bad_weights(path, "no tensor in it")
    return tensors


def _tensor(array: npt.NDArray[Any]) -> torch.Tensor:
    """The same memory, in the dtype that torch has for it."""
    name = array.dtype.name
    if name not in _BY_BITS:
        return torch.from_numpy(array)
    bits = np.int16 if array.dtype.itemsize == 2 else np.uint8
    return torch.from_numpy(array.view(bits)).view(_BY_BITS[name])


def write_weights(module: nn.Module, path: Path) -> None:
    """The module's state as safetensors; not synchronised to disk, which is the caller's part."""
    state = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    path.write_bytes(save({name: tensor.contiguous() for name, tensor in state.items()}))


def load_into(module: nn.Module, tensors: dict[str, torch.Tensor], where: str) -> None:
    """Copy tensors into the module, converted to its dtypes; names and shapes must agree.

    A file may lack BatchNorm's `num_batches_tracked` and all but one of a group of tied weights.

    Raises:
        ModelError: naming the first tensor that is missing, unknown or of another shape.
    """
    state = module.state_dict()
    storages = {state[n].untyped_storage().data_ptr() for n in tensors if n in state}
    missing = [
        name
        for name, tensor in state.items()
        if name not in tensors
        and not name.endswith("num_batches_tracked")
        and tensor.untyped_storage().data_ptr() not in storages
    ]
    unknown = [name for name in tensors if name not in state]
    remedy = "give the weights that were saved from this very module"
    if missing:
        found = f"{_some(missing)} missing" + (f", {_some(unknown)} unknown" if unknown else "")
        raise ModelError(where, expected=_count(state), found=found, remedy=remedy)
    if unknown:
        raise ModelError(
            where, expected=_count(state), found=f"unknown {_some(unknown)}", remedy=remedy
        )
    for name, tensor in tensors.items():
        if tensor.shape != state[name].shape:
            raise ModelError(
                f"{where}: {name}",
                expected=f"shape {list(state[name].shape)}",
                found=f"{list(tensor.shape)}",
                remedy=remedy,
            )
    with torch.no_grad():
        for name, tensor in tensors.items():
            state[name].copy_(tensor)


def float_dtype(tensors: dict[str, torch.Tensor]) -> str:
    """The dtype of most float tensors: "float32", "float16" or "bfloat16"."""
    counts = Counter(
        str(t.dtype).removeprefix("torch.") for t in tensors.values() if t.is_floating_point()
    )
    return counts.most_common(1)[0][0] if counts else "float32"


def freeze(module: nn.Module) -> nn.Module:
    """The same module in float32 and eval mode, without gradients."""
    return module.float().eval().requires_grad_(False)


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _count(state: dict[str, torch.Tensor]) -> str:
    return f"the module's {len(state)} tensors"
