"""One forward pass on real samples, before anything is built upon a model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edge_pslora.data.types import Samples
from edge_pslora.errors import ModelError
from edge_pslora.models.failures import FOREIGN_ERRORS, first_line


def probe_indices(samples: Samples) -> npt.NDArray[np.int64]:
    """Two samples to try a model on (one where there is one), with a missing value if any has."""
    chosen = [0, 1][: len(samples)]
    if isinstance(samples.inputs, np.ndarray):
        rows = np.asarray(samples.inputs).reshape(len(samples), -1)
        incomplete = np.flatnonzero(np.isnan(rows).any(axis=1))
        if len(incomplete):
            chosen[-1] = int(incomplete[0])
    return np.asarray(chosen, np.int64)


@torch.no_grad()
def run_once(module: nn.Module, inputs: Mapping[str, torch.Tensor], where: str) -> object:
    """The module's output for keyword inputs, whatever it is.

    Raises:
        ModelError: the forward pass fails.
    """
    try:
        return module(**inputs)
    except FOREIGN_ERRORS as error:
        shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in inputs.items())
        raise ModelError(
            where,
            expected=f"a model that takes {shapes}",
            found=first_line(error),
            remedy="change the model or the shape of the data",
        ) from error


def check_features(features: object, count: int, where: str) -> int:
    """The feature size d of an output that must be finite float [count, d].

    Raises:
        ModelError: another type, rank or batch size; values that are not finite.
    """
    expected = f"features [{count}, d] as one float tensor"
    remedy = "let forward return a float tensor [N, d], [N, T, d] or [N, d, H, W]"
    if not isinstance(features, torch.Tensor):
        raise ModelError(where, expected=expected, found=type(features).__name__, remedy=remedy)
    shape = list(features.shape)
    if not features.is_floating_point() or len(shape) != 2 or shape[0] != count or not shape[1]:
        found = f"{str(features.dtype).removeprefix('torch.')} {shape}"
        raise ModelError(where, expected=expected, found=found, remedy=remedy)
    if not bool(torch.isfinite(features).all()):
        raise ModelError(
            where,
            expected="finite features",
            found="NaN or infinity for real samples",
            remedy="check the weights; fill in missing values, which only --model auto takes",
        )
    return shape[1]
