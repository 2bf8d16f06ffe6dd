"""Which tensor of the user's file each tensor of the loaded module comes from."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from edge_pslora.errors import ModelError
from edge_pslora.models.failures import FOREIGN_ERRORS, first_line
from edge_pslora.models.hf_parts import quiet, require_transformers
from edge_pslora.models.weights_header import WEIGHTS_FILE

FIRST_TAG = 2  # 0 and 1 are what transformers itself fills biases and norms with


def trace_names(model: Any, tensors: dict[str, torch.Tensor], where: str) -> dict[str, str]:
    """State name -> file name, for every tensor of the model that the file holds as it is.

    A file of "BertForMaskedLM" says "bert.encoder..." for what the encoder alone calls
    "encoder...", and newer versions of transformers rename layers while they load older files. So
    the loader itself is asked: it loads the file's names with each tensor filled by a number of its
    own, and the numbers are read back. Equal values in the real file cannot mislead this.

    model: as loaded, before anything is cut off. Takes the memory of a second model for a moment.

    Raises:
        ModelError: this version of transformers does not load from tensors in memory.
    """
    names = sorted(tensors)
    tagged = {name: _filled(tensors[name], FIRST_TAG + i) for i, name in enumerate(names)}
    try:
        with quiet(require_transformers(where)):
            copy = type(model).from_pretrained(None, config=model.config, state_dict=tagged)
    except FOREIGN_ERRORS as error:
        raise ModelError(
            where,
            expected="a model whose tensors can be traced to its file",
            found=first_line(error),
            remedy="save it again with model.save_pretrained(folder)",
        ) from error
    traced: dict[str, str] = {}
    for name, tensor in copy.state_dict().items():
        first = float(tensor.flatten()[0]) if tensor.numel() else 0.0
        index = int(first) - FIRST_TAG
        if first.is_integer() and 0 <= index < len(names) and bool((tensor == first).all()):
            traced[name] = names[index]
    return traced


def untraced(model: nn.Module, names: dict[str, str]) -> list[str]:
    """The state names that no tensor of the file accounts for, but for BatchNorm's counters."""
    return [
        name
        for name in model.state_dict()
        if name not in names and not name.endswith("num_batches_tracked")
    ]


def require_complete(model: nn.Module, names: dict[str, str], where: str) -> None:
    """Raises ModelError: the file of the folder `where` lacks a weight of the model."""
    missing = untraced(model, names)
    if missing:
        raise ModelError(
            f"{where}/{WEIGHTS_FILE}",
            expected=f"every weight of {type(model).__name__}",
            found=f"{len(missing)} missing, the first is {missing[0]}",
            remedy="give the complete weights of this model",
        )


def _filled(tensor: torch.Tensor, value: int) -> torch.Tensor:
    """A tensor of that shape full of one value, without its memory."""
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return torch.full((1,) * tensor.dim(), value, dtype=dtype).expand(tensor.shape)
