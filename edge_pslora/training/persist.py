"""What a session remembers, as arrays: the content of the history and anchor files (the head's:
persist_head.py).

Torch on one side, numpy and strings on the other; no file is opened here. The history is one pool of
a fixed size, so that its file has the same length after session 1 and session 1000.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import torch

from edge_pslora.core.fixed_point import packed_bytes
from edge_pslora.core.history import LayerHistory, pool_bytes
from edge_pslora.errors import WorkspaceError
from edge_pslora.training.anchor import AnchorSet
from edge_pslora.training.stored import Stored, texts_in


def history_to_arrays(history: Mapping[str, LayerHistory], budget_bytes: int) -> Stored:
    """pool uint8 [P]: the packed factors of every layer, one after the other, zeros at the end;
    layers int32 [L, 5]: (out, in, components with at least 1, 2 and 3 bytes a number); bounds float64
    [L, 2]: (eps, frobenius); metadata: the layers' names in order."""
    pool = np.zeros(pool_bytes({n: h.shape for n, h in history.items()}, budget_bytes), np.uint8)
    position = 0
    for layer in history.values():
        pool[position : position + layer.packed.numel()] = layer.packed.numpy()
        position += layer.packed.numel()
    rows = [[*layer.shape, *layer.planes] for layer in history.values()]
    bounds = [[layer.eps, layer.frobenius] for layer in history.values()]
    return Stored(
        {
            "pool": pool,
            "layers": np.array(rows, dtype=np.int32).reshape(-1, 5),
            "bounds": np.array(bounds, dtype=np.float64).reshape(-1, 2),
        },
        {"layers": json.dumps(list(history))},
    )


def history_from_arrays(stored: Stored, where: str) -> dict[str, LayerHistory]:
    """The inverse of `history_to_arrays`, exact to the bit.

    Raises:
        WorkspaceError: the arrays do not fit together.
    """
    names = texts_in(stored.metadata, "layers", where)
    pool, layers, bounds = (stored.arrays.get(key) for key in ("pool", "layers", "bounds"))
    fits = (
        pool is not None
        and layers is not None
        and bounds is not None
        and [a.dtype.name for a in (pool, layers, bounds)] == ["uint8", "int32", "float64"]
        and pool.ndim == 1
        and layers.shape == (len(names), 5)
        and bounds.shape == (len(names), 2)
        and bool((layers >= 0).all() and (np.diff(layers[:, 2:], axis=1) <= 0).all())
        and bool((layers[:, 2] <= layers[:, :2].min(axis=1)).all())
        and bool((bounds >= 0).all() and np.isfinite(bounds).all())
    )
    history: dict[str, LayerHistory] = {}
    position = 0
    if fits and pool is not None and layers is not None and bounds is not None:
        for name, (out, size, *counts), (eps, frobenius) in zip(
            names, layers.tolist(), bounds.tolist(), strict=True
        ):
            planes = (counts[0], counts[1], counts[2])
            end = position + packed_bytes((out, size), planes)
            packed = torch.from_numpy(pool[position:end].copy())
            history[name] = LayerHistory((out, size), planes, packed, eps, frobenius)
            position = end
    if not fits or pool is None or position > pool.size:
        raise WorkspaceError(
            where,
            expected="a history: pool, layers and bounds of the layers it names",
            found="arrays that do not fit together, or one of an earlier format",
            remedy="roll back to an earlier generation",
        )
    return history


def anchors_to_arrays(anchors: AnchorSet) -> Stored:
    """input.NAME arrays, session int32 [K], and target: float32 [K] or int32 [K] into the labels."""
    arrays = {f"input.{name}": array for name, array in anchors.inputs.items()}
    arrays["session"] = anchors.session
    if anchors.targets.dtype.kind == "f":
        arrays["target"] = anchors.targets.astype(np.float32)
        return Stored(arrays)
    labels, index = np.unique(anchors.targets.astype(str), return_inverse=True)
    arrays["target"] = index.astype(np.int32)
    return Stored(arrays, {"labels": json.dumps(labels.tolist())})


def anchors_from_arrays(stored: Stored, where: str = "the anchor set") -> AnchorSet:
    """The inverse of `anchors_to_arrays`.

    Raises:
        WorkspaceError: the arrays do not fit together.
    """
    prefix = "input."
    target, session = (stored.arrays.get(name) for name in ("target", "session"))
    inputs = {n.removeprefix(prefix): a for n, a in stored.arrays.items() if n.startswith(prefix)}
    labels = None
    if "labels" in stored.metadata:
        labels = np.array(texts_in(stored.metadata, "labels", where), dtype=np.str_)
    if (
        target is None
        or session is None
        or not inputs
        or target.dtype != (np.float32 if labels is None else np.int32)
        or session.dtype != np.int32
        or target.ndim != 1
        or any(a.ndim < 1 or len(a) != len(target) for a in (session, *inputs.values()))
        or (labels is None and not np.isfinite(target).all())
        or (labels is not None and not ((target >= 0) & (target < len(labels))).all())
    ):
        raise WorkspaceError(
            where,
            expected="an anchor set: inputs, a target and a session for each sample",
            found="arrays that do not fit together",
            remedy="roll back to an earlier generation",
        )
    return AnchorSet(inputs, target if labels is None else labels[target], session)
