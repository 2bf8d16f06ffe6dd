"""Weights of a base model: read from safetensors, checked against a module by name and shape."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from edge_pslora.errors import ModelError
from edge_pslora.models.weights_header import bad_weights, read_safetensors_header

_PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file, in the file's dtypes.

    Raises:
        ModelError: not a safetensors file, damaged, a name twice, or a value that is not finite.
    """
    if path.suffix in _PICKLED:
        raise bad_weights(path, f"a {path.suffix} file, which may hold a pickle")
    if not path.is_file():
        raise bad_weights(path, "a folder" if path.is_dir() else "no such file")
    read_safetensors_header(path)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise bad_weights(path, str(error)) from error
    if not tensors:
        raise bad_weights(path, "no tensor in it")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise bad_weights(path, f"{name} has values that are not finite")
    return tensors


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
