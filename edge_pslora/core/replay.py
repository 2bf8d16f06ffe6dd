"""One weight from one generation to the next, with the same bits on every machine (float32, numpy only).

    D_t = scaling * (((b_0 a_0 + b_1 a_1) + b_2 a_2) + ...)     b_k: column of B, a_k: row of A
    W_t = W_0 + merge_step(rule, W_{t-1} - W_0, D_t, t)

A product of matrices by a BLAS depends in its last bit on the library, the processor and the number
of threads: it may add in any order and fuse a multiplication with an addition. Here every operation
is one element-wise call that rounds once, as IEEE 754 says, in a fixed order: over the rank from 0
up, the scaling last. A receiver that has W_0, W_{t-1}, A and B gets W_t bit for bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edge_pslora.config import MergeRule
from edge_pslora.core.merge import merge_into
from edge_pslora.errors import EdgePsloraError

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

_BLOCK = 1 << 15  # entries: the sums and one product of a block stay in the second-level cache


def low_rank_update(left: Floats, right: Floats, scaling: float) -> Floats:
    """scaling * left right, [rows, columns], for left [rows, r] and right [r, columns].

    D of a weight [out, in] is low_rank_update(B, A, s); its transpose is low_rank_update(A.T, B.T, s),
    with the same bits: a product of two numbers does not depend on their order.

    Raises:
        EdgePsloraError: not float32, or shapes that do not fit.
    """
    out: Floats = np.empty((left.shape[0], right.shape[-1]), np.float32)
    update_into(out, left, right, scaling)
    return out


def update_into(out: Floats, left: Floats, right: Floats, scaling: float) -> None:
    """low_rank_update into `out` [rows, columns]; what overflows is infinite or NaN there.

    scaling: rounded to float32.
    """
    _check(out, left, right)
    rows, columns = out.shape
    rank = left.shape[1]
    width = max(1, min(columns, _BLOCK))
    height = max(1, _BLOCK // width)
    spare = np.empty(min(height, rows) * width, np.float32)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        factor = np.float32(scaling)
        for row in range(0, rows, height):
            tall = left[row : row + height]
            for column in range(0, columns, width):
                wide = right[:, column : column + width]
                block = out[row : row + height, column : column + width]
                product = spare[: block.size].reshape(block.shape)
                if not rank:
                    block.fill(0)
                for k in range(rank):
                    target = product if k else block
                    np.multiply(tall[:, k, None], wide[k], target)
                    if k:
                        np.add(block, product, block)
                np.multiply(block, factor, block)


def next_weight(
    rule: MergeRule, base: Floats, previous: Floats, update: Floats, session: int
) -> Floats:
    """W_t, a new array of the shape of its arguments.

    Args:
        base, previous: W_0 and W_{t-1}. update: D_t, in the weight's shape. session: t, from 1.

    Raises:
        UsageError: an unknown rule.
        EdgePsloraError: a value is not finite, or a sum overflows.
    """
    out: Floats = np.empty(base.shape, np.float32)
    advance_into(out, rule, base, previous, update, session)
    return out


def advance_into(
    out: Floats, rule: MergeRule, base: Floats, previous: Floats, update: Floats, session: int
) -> None:
    """next_weight into `out`: C-contiguous, no memory in common with `base` and `update`."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        np.subtract(previous, base, out)
    merge_into(out, rule, out, update, session)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        np.add(base, out, out)


def _check(out: Array, left: Array, right: Array) -> None:
    shapes = (out.ndim, left.ndim, right.ndim) == (2, 2, 2) and (
        left.shape[1] == right.shape[0] and out.shape == (left.shape[0], right.shape[1])
    )
    if not shapes or not all(array.dtype == np.float32 for array in (out, left, right)):
        raise EdgePsloraError(
            "factors of an update",
            expected="float32, [rows, r] and [r, columns]",
            found=f"{left.dtype} {left.shape} and {right.dtype} {right.shape}",
            remedy="this is a defect: report it",
        )
