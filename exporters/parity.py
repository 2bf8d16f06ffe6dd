"""Does the ONNX file compute what torch computes?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edge_pslora.errors import UsageError
from edge_pslora.exporters.run import open_onnx

# One column (regression) has no argmax: rows agree when they differ by at most this, relatively.
_SAME_VALUE = 1e-4


@dataclass(frozen=True)
class Parity:
    """torch against onnxruntime (CPU) over all batches.

    max_abs_error: of any logit; infinite when a value is not finite. max_rel_error: the same,
    divided by the largest absolute logit of its batch. agreement: fraction of rows with the same
    prediction (one column: values equal to 1e-4). batch_sizes: rows of each batch.
    """

    max_abs_error: float
    max_rel_error: float
    agreement: float
    batch_sizes: tuple[int, ...]


def check_parity(
    classifier: nn.Module,
    onnx_path: Path,
    batches: Sequence[Mapping[str, torch.Tensor]],
    *,
    threads: int | None = None,
) -> Parity:
    """Run both on every batch.

    Args:
        classifier: in eval mode, called with a batch as keyword inputs.
        batches: at least one; use two sizes (and lengths), since exports fail in some shapes only.
        threads: of onnxruntime; None leaves it to choose.

    Raises:
        ModelError: the file cannot be loaded or run.
        UsageError: no batches.
    """
    if not batches:
        raise UsageError(
            "parity check", expected="at least one batch", found="none", remedy="give samples"
        )
    runner = open_onnx(onnx_path, threads=threads)
    pairs = []
    for batch in batches:
        with torch.inference_mode():
            expected = classifier(**batch).cpu().numpy()
        arrays = {name: tensor.cpu().numpy() for name, tensor in batch.items()}
        pairs.append((expected, runner.run(arrays)))
    return compare(pairs)


def compare(pairs: Sequence[tuple[npt.NDArray[Any], npt.NDArray[Any]]]) -> Parity:
    """Parity of (expected, found) logits, each [N, C] or [N, T, V]; equal shapes in a pair."""
    abs_errors, rel_errors, agreeing = [0.0], [0.0], 0.0
    for expected, found in pairs:
        if expected.shape != found.shape or not (
            np.isfinite(expected).all() and np.isfinite(found).all()
        ):
            abs_errors.append(float("inf"))
            rel_errors.append(float("inf"))
            continue
        error = np.abs(expected.astype(np.float64) - found.astype(np.float64))
        abs_errors.append(float(error.max(initial=0.0)))
        scale = float(np.abs(expected).max(initial=0.0))
        rel_errors.append(abs_errors[-1] / scale if scale > 0 else abs_errors[-1])
        agreeing += float(_agree(expected, found, error).sum())
    sizes = tuple(len(expected) for expected, _ in pairs)
    return Parity(max(abs_errors), max(rel_errors), agreeing / max(sum(sizes), 1), sizes)


def _agree(
    expected: npt.NDArray[Any], found: npt.NDArray[Any], error: npt.NDArray[np.float64]
) -> npt.NDArray[Any]:
    """[N]: 1 where the predictions are the same; of a text, the share of its tokens."""
    if expected.ndim == 3:
        return np.asarray((expected.argmax(axis=2) == found.argmax(axis=2)).mean(axis=1))
    if expected.shape[1] == 1:
        limit = _SAME_VALUE * np.maximum(np.abs(expected[:, 0]), 1.0)
        return np.asarray(error[:, 0] <= limit)
    return np.asarray(expected.argmax(axis=1) == found.argmax(axis=1))
