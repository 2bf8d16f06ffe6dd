"""Does the ONNX file compute what torch computes?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edge_pslora.errors import UsageError
from edge_pslora.exporters.run import OnnxRunner, open_onnx
from edge_pslora.tasks import TASKS

# Values (regression) are no decisions: rows agree when they differ by at most this, relatively.
_SAME_VALUE = 1e-4

# What two ways of computing the same may differ by, as a share of the largest output, by the dtype that
# is computed in: some 80 units in the last place of float32, which sums long products; eight of the
# 16-bit formats, which sum in float32. A graph of `adapt` is float32, whatever its base was stored in.
ROUNDING = {"float64": 1e-5, "float32": 1e-5, "float16": 8e-3, "bfloat16": 6e-2}
_OUTPUTS = {
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
}

Array = npt.NDArray[Any]
Predict = Callable[[Array], Array]  # outputs -> decisions [N, ...]
# outputs, decisions of another -> the least change of every output that would lead to those, [N, ...]
Margin = Callable[[Array, Array], Array]


_CLASSES = TASKS["classification"]


@dataclass(frozen=True)
class Parity:
    """torch against onnxruntime (CPU) over all batches.

    max_abs_error: of any output; infinite when a value is not finite. max_rel_error: the same,
    divided by the largest absolute output of its batch. agreement: fraction of decisions (rows; of
    several labels or tokens each) that are the same; without decisions: of values equal to 1e-4.
    ties, differing: decisions that are not the same: where torch's own outputs are level, and all
    others. dtype: the coarser of what both compute in. batch_sizes: rows of each batch; lengths: of their
    sequences, where the model takes any length. batch_errors: absolute and relative, of each batch.
    """

    max_abs_error: float
    max_rel_error: float
    agreement: float
    batch_sizes: tuple[int, ...]
    ties: int = 0
    differing: int = 0
    dtype: str = "float32"
    lengths: tuple[int, ...] = ()
    batch_errors: tuple[tuple[float, float], ...] = ()

    def within(self, absolute: float, relative: float) -> bool:
        """Whether in every batch one of both limits holds; a NaN or an infinity is within none."""
        errors = self.batch_errors or ((self.max_abs_error, self.max_rel_error),)
        return all(a <= absolute or r <= relative for a, r in errors)


def check_parity(
    classifier: nn.Module,
    onnx_path: Path,
    batches: Sequence[Mapping[str, torch.Tensor]],
    *,
    threads: int | None = None,
    predict: Predict | None = _CLASSES.predict,
    margin: Margin | None = _CLASSES.margin,
) -> Parity:
    """Run both on every batch, one after the other: a language model's outputs are large.

    Args:
        classifier: in eval mode, called with a batch as keyword inputs.
        batches: at least one; use two sizes (and lengths), since exports fail in some shapes only.
        threads: of onnxruntime; None leaves it to choose.
        predict, margin: see `compare`.

    Raises:
        ModelError: the file cannot be loaded or run.
        UsageError: no batches.
    """
    if not batches:
        raise UsageError(
            "parity check", expected="at least one batch", found="none", remedy="give samples"
        )
    runner = open_onnx(onnx_path, threads=threads)
    outputs = (_both(classifier, runner, batch) for batch in batches)
    return compare(outputs, predict, margin, _computed_in(classifier, runner))


def _both(
    classifier: nn.Module, runner: OnnxRunner, batch: Mapping[str, torch.Tensor]
) -> tuple[Array, Array]:
    with torch.inference_mode():
        expected = classifier(**batch).cpu()
    if expected.dtype == torch.bfloat16:  # numpy has none
        expected = expected.float()
    return expected.numpy(), runner.run(
        {name: tensor.cpu().numpy() for name, tensor in batch.items()}
    )


def _computed_in(classifier: nn.Module, runner: OnnxRunner) -> str:
    """The coarsest dtype of torch's weights and the file's output; a key of ROUNDING."""
    found = {str(p.dtype).removeprefix("torch.") for p in classifier.parameters()}
    found.add(_OUTPUTS.get(runner.session.get_outputs()[0].type, "float32"))
    return max(found & ROUNDING.keys(), key=ROUNDING.__getitem__)


def compare(
    pairs: Iterable[tuple[Array, Array]],
    predict: Predict | None = _CLASSES.predict,
    margin: Margin | None = _CLASSES.margin,
    dtype: str = "float32",
) -> Parity:
    """Parity of (expected, found) outputs, each [N, ...]; both of equal shape in a pair.

    A decision that is not the same counts as a tie where torch is level: the least change of its
    outputs that leads to the other decision is within the batch's error, and within ROUNDING of its
    largest output. The error alone would prove nothing: it reaches as far as the difference, however large.

    Args:
        predict: outputs -> decisions; None compares the outputs, which are values.
        margin: of expected outputs, for the decisions of the found ones; None: no decision is a tie.
        dtype: that the coarser of both computes in, a key of ROUNDING.
    """
    abs_errors, rel_errors, sizes = [0.0], [0.0], []
    same = total = ties = 0
    for expected, found in pairs:
        sizes.append(len(expected))
        decided = expected if predict is None else predict(expected)
        total += decided.size
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
        if predict is None:
            same += int(_same_values(expected, found).sum())
            continue
        others = predict(found)
        equal = decided == others
        same += int(equal.sum())
        if margin is not None and not equal.all():
            level = min(abs_errors[-1], ROUNDING[dtype] * scale)
            ties += int((~equal & (margin(expected, others) <= level)).sum())
    differing = 0 if predict is None else total - same - ties
    return Parity(
        max(abs_errors),
        max(rel_errors),
        same / max(total, 1),
        tuple(sizes),
        ties,
        differing,
        dtype,
        batch_errors=tuple(zip(abs_errors[1:], rel_errors[1:], strict=True)),
    )


def agree(expected: Array, found: Array, predict: Predict | None) -> npt.NDArray[np.bool_]:
    """bool [N]: the same decisions, or without decisions values equal to 1e-4."""
    if predict is None:
        same = _same_values(expected, found)
        return np.asarray(same.reshape(len(expected), -1).all(axis=1))
    decided = predict(expected) == predict(found)
    return np.asarray(decided.reshape(len(expected), -1).all(axis=1))


def _same_values(expected: Array, found: Array) -> npt.NDArray[np.bool_]:
    limit = _SAME_VALUE * np.maximum(np.abs(expected), 1.0)
    return np.asarray(np.abs(expected - found) <= limit)
