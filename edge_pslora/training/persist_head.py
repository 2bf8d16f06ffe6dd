"""A head as arrays and text, and back: the content of head.safetensors.

Every label adds one row to weight, bias and a linear head's past, and one column to the moment; all
else has the same size after session 1 and session 1000.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import astuple

import numpy as np
import torch

from edge_pslora.config import TASK_TYPES
from edge_pslora.core.analytic_head import HeadStatistics
from edge_pslora.core.gram_rank import LowRankGram, compress_gram, gram_rank, restore_gram
from edge_pslora.errors import WorkspaceError
from edge_pslora.tasks.regression import ValueMoments
from edge_pslora.training.head import Head
from edge_pslora.training.head_rows import RowPast
from edge_pslora.training.stored import Array, Stored, texts_in


def head_to_arrays(head: Head, head_bytes: int) -> Stored:
    """weight [C, d], bias [C], float32.

    Analytic: moment [d+1, C], gram [d+1, d+1] or, where that is more than head_bytes, gram_edge [d+1],
    gram_vectors [d, k] and gram_values [k + 1] (the last one: of every other direction), float32;
    squares [C] and samples [1], float64. Linear with a past: row_origin, row_history [C, d+1] float32,
    row_updates int32 [C].

    Raises:
        BudgetError: head_bytes holds not even k = 1.
    """
    arrays: dict[str, Array] = {"weight": head.weight.numpy(), "bias": head.bias.numpy()}
    if head.statistics is not None:
        arrays |= _gram_arrays(head.statistics.gram, head_bytes)
        arrays["moment"] = head.statistics.moment.float().numpy()
        arrays["squares"] = head.statistics.squares.numpy()
        arrays["samples"] = np.array([head.statistics.samples], dtype=np.float64)
    if head.past is not None:
        arrays["row_origin"] = head.past.origin.numpy()
        arrays["row_history"] = head.past.history.numpy()
        arrays["row_updates"] = head.past.updates.int().numpy()
    metadata = {
        "task_type": head.task_type,
        "labels": json.dumps(list(head.labels)),
        "values": json.dumps(astuple(head.values)),
    }
    if head.statistics is not None:
        metadata["ridge"] = repr(head.ridge)
    if head.template is not None:
        metadata["template"] = head.template
    return Stored(arrays, metadata)


def head_from_arrays(stored: Stored, where: str) -> Head:
    """The inverse of `head_to_arrays`, up to the rounding of the statistics to float32.

    Raises:
        WorkspaceError: the arrays do not fit together.
    """
    arrays, metadata = stored.arrays, stored.metadata
    labels = tuple(texts_in(metadata, "labels", where))
    kinds = [kind for kind in TASK_TYPES if kind == metadata.get("task_type")]
    weight, bias = arrays.get("weight"), arrays.get("bias")
    if (
        weight is None
        or bias is None
        or not kinds
        or weight.ndim != 2
        or bias.ndim != 1
        or not weight.dtype == bias.dtype == np.float32
        or not len(weight) == len(bias) == len(labels)
    ):
        raise _damaged(
            where,
            "weight, bias and a label for each row",
            f"{len(labels)} labels, weight {None if weight is None else weight.shape}",
        )
    return Head(
        kinds[0],
        labels,
        torch.from_numpy(weight.copy()),
        torch.from_numpy(bias.copy()),
        _statistics(arrays, labels, weight.shape[1], where),
        _values(metadata, where),
        _ridge(metadata, where),
        _past(arrays, weight.shape[0], weight.shape[1], where),
        metadata.get("template"),
    )


def _values(metadata: Mapping[str, str], where: str) -> ValueMoments:
    try:
        count, mean, squares = json.loads(metadata.get("values", "null"))
        values = ValueMoments(float(count), float(mean), float(squares))
    except (ValueError, TypeError) as problem:
        raise _damaged(where, "three moments of the targets", str(problem)) from problem
    if not (values.count >= 0 and values.squares >= 0 and math.isfinite(sum(astuple(values)))):
        raise _damaged(where, "three moments of the targets", str(values))
    return values


def _ridge(metadata: Mapping[str, str], where: str) -> float:
    text = metadata.get("ridge", "0.0")
    try:
        ridge = float(text)
    except ValueError:
        ridge = math.nan
    if not 0 <= ridge < math.inf:
        raise _damaged(where, "a ridge from 0", ascii(text)[:40])
    return ridge


def _gram_arrays(gram: torch.Tensor, head_bytes: int) -> dict[str, Array]:
    rank = gram_rank(len(gram) - 1, head_bytes)
    if rank is None:
        return {"gram": gram.float().numpy()}
    low = compress_gram(gram, rank)
    values = torch.cat([low.values, low.values.new_tensor([low.rest])])
    return {
        "gram_edge": low.edge.float().numpy(),
        "gram_vectors": low.vectors.float().numpy(),
        "gram_values": values.float().numpy(),
    }


def _statistics(
    arrays: Mapping[str, Array], labels: tuple[str, ...], size: int, where: str
) -> HeadStatistics | None:
    """None for a head that is not analytic."""
    if "moment" not in arrays:
        return None
    columns = len(labels)
    wanted = {"moment": (size + 1, columns), "squares": (columns,), "samples": (1,)}
    if "gram" in arrays:
        wanted["gram"] = (size + 1, size + 1)
    else:
        values = arrays.get("gram_values")
        rank = -1 if values is None or values.ndim != 1 else len(values) - 1
        wanted |= {"gram_edge": (size + 1,), "gram_vectors": (size, rank)}
        wanted["gram_values"] = (rank + 1,)
    for name, shape in wanted.items():
        numbers = name in arrays and arrays[name].dtype.kind == "f"
        found = arrays[name].shape if numbers else None
        if found != shape:
            raise _damaged(where, f"{name} of shape {shape}", f"{found}, or of an earlier version")
    double = {name: torch.from_numpy(arrays[name].astype(np.float64)) for name in wanted}
    if "gram" in double:
        gram = double["gram"]
    else:
        low = double["gram_values"]
        gram = restore_gram(
            LowRankGram(double["gram_edge"], double["gram_vectors"], low[:-1], float(low[-1]))
        )
    return HeadStatistics(
        gram, double["moment"], double["squares"], labels, float(double["samples"][0])
    )


def _past(arrays: Mapping[str, Array], rows: int, size: int, where: str) -> RowPast | None:
    names = ("row_origin", "row_history", "row_updates")
    if not any(name in arrays for name in names):
        return None
    shapes = [arrays[name].shape if name in arrays else None for name in names]
    if shapes != [(rows, size + 1), (rows, size + 1), (rows,)]:
        raise _damaged(where, f"the past of {rows} rows", f"{', '.join(names)} {shapes}")
    origin, history, updates = (torch.from_numpy(arrays[name].copy()) for name in names)
    return RowPast(origin, history, updates.long())


def _damaged(where: str, expected: str, found: str) -> WorkspaceError:
    return WorkspaceError(
        where,
        expected=f"a head: {expected}",
        found=found,
        remedy="roll back to an earlier generation",
    )
