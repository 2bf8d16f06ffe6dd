"""The loop's state as arrays: what a killed run goes on from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edge_pslora.training.adamw import AdamW
from edge_pslora.training.watching import Watch

if TYPE_CHECKING:
    from edge_pslora.training.loop import CheckpointStore, TrainLog


def save(
    store: CheckpointStore,
    named: Mapping[str, nn.Parameter],
    optimizer: AdamW,
    log: TrainLog,
    rate_factor: float,
    watch: Watch | None = None,
) -> None:
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, parameter in named.items():
        arrays[f"{name}.value"] = parameter.detach().cpu().numpy().copy()
        for key, value in optimizer.state[parameter].items():
            arrays[f"{name}.{key}"] = np.atleast_1d(value.detach().cpu().numpy().copy())
    arrays["log.task_loss"] = np.array(log.task_loss, dtype=np.float64)
    arrays["log.penalty"] = np.array(log.penalty, dtype=np.float64)
    arrays["log.pull"] = np.array(log.pull, dtype=np.float64)
    meta: dict[str, Any] = {"bad_steps": log.bad_steps, "rate_factor": rate_factor}
    if watch is not None:
        meta["watched"] = watch.losses
        for name, value in zip(named, watch.best, strict=False):
            arrays[f"{name}.best"] = value.cpu().numpy().copy()
    store.save(arrays, meta)


def restore(
    saved: tuple[dict[str, npt.NDArray[Any]], dict[str, Any]],
    named: Mapping[str, nn.Parameter],
    optimizer: AdamW,
    log: TrainLog,
    watch: Watch | None = None,
) -> float:
    """Puts everything back; returns the factor on the rate."""
    arrays, meta = saved
    for name, parameter in named.items():
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(arrays[f"{name}.value"]))
        if f"{name}.step" not in arrays:  # a norm beside the features never had a gradient
            continue
        optimizer.state[parameter] = {
            "step": torch.from_numpy(arrays[f"{name}.step"].copy())[0],
            "exp_avg": torch.from_numpy(arrays[f"{name}.exp_avg"].copy()).to(parameter.device),
            "exp_avg_sq": torch.from_numpy(arrays[f"{name}.exp_avg_sq"].copy()).to(
                parameter.device
            ),
        }
    log.task_loss = arrays["log.task_loss"].tolist()
    log.penalty = arrays["log.penalty"].tolist()
    log.pull = arrays["log.pull"].tolist()
    log.bad_steps = int(meta["bad_steps"])
    log.resumed_at = log.steps + log.bad_steps
    if watch is not None:
        watch.losses = [float(loss) for loss in meta["watched"]]
        watch.best = [
            torch.from_numpy(arrays[f"{name}.best"].copy()) for name in named if watch.losses
        ]
    return float(meta["rate_factor"])
