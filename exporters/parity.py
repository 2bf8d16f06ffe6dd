"""Does the ONNX file compute what torch computes?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edge_pslora.errors import UsageError
from edge_pslora.exporters.run import open_onnx

# Values (regression) are no decisions: rows agree when they differ by at most this, relatively.
_SAME_VALUE = 1e-4

Predict = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]


def _first_is_best(logits: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.asarray(logits.argmax(axis=1))


@dataclass(frozen=True)
class Parity:
    """torch against onnxruntime (CPU) over all batches.

    max_abs_error: of any logit; infinite when a value is not finite. max_rel_error: the same,
    divided by the largest absolute logit of its batch. agreement: fraction of rows with the same
    prediction (without decisions: values equal to 1e-4). batch_sizes: rows of each batch.
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
    predict: Predict | None = _first_is_best,
) -> Parity:
    """Run both on every batch.

    Args:
        classifier: in eval mode, called with a batch as keyword inputs.
        batches: at least one; use two sizes (and lengths), since exports fail in some shapes only.
        threads: of onnxruntime; None leaves it to choose.
        predict: outputs -> decisions [N, ...]; None compares the outputs, which are values.

    Raises:
        ModelError: the file cannot be loaded or run.
        UsageError: no batches.
    """
    if not batches:
        raise UsageError(
            "parity check", expected="at least one batch", found="none", remedy="give samples"
        )
    runner = open_onnx(onnx_path, threads=threads)

    def pairs() -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
        for batch in batches:
            with torch.inference_mode():
                expected = classifier(**batch).cpu().numpy()
            arrays = {name: tensor.cpu().numpy() for name, tensor in batch.items()}
            yield expected, runner.run(arrays)

    return compare(pairs(), predict)


def compare(
    pairs: Iterable[tuple[npt.NDArray[Any], npt.NDArray[Any]]],
    predict: Predict | None = _first_is_best,
) -> Parity:
    """Parity of (expected, found) outputs, each [N, ...]; both of equal shape in a pair.

    One pair after the other is asked for and let go: those of a language model are large.
    """
    abs_errors, rel_errors, agreeing, sizes = [0.0], [0.0], 0, []
    for expected, found in pairs:
        sizes.append(len(expected))
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
        agreeing += int(agree(expected, found, predict).sum())
    return Parity(max(abs_errors), max(rel_errors), agreeing / max(sum(sizes), 1), tuple(sizes))


def agree(
    expected: npt.NDArray[Any], found: npt.NDArray[Any], predict: Predict | None
) -> npt.NDArray[np.bool_]:
    """bool [N]: the same decisions, or without decisions values equal to 1e-4."""
    if predict is None:
        limit = _SAME_VALUE * np.maximum(np.abs(expected), 1.0)
        same = np.abs(expected - found) <= limit
    else:
        same = predict(expected) == predict(found)
    return np.asarray(same.reshape(len(expected), -1).all(axis=1))
