"""What a session leaves to the next one, and what the first one starts from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from edge_pslora.config import AdaptConfig, TaskType
from edge_pslora.core.analytic_head import empty_statistics
from edge_pslora.core.history import LayerHistory, empty_layer
from edge_pslora.errors import UsageError
from edge_pslora.models.types import LoadedModel
from edge_pslora.tasks import TASKS
from edge_pslora.training.head import Head
from edge_pslora.training.targets import Target

BaseWeights = Callable[[str], torch.Tensor]  # weight name -> W0 in the weight's own shape, float32


@dataclass(frozen=True)
class Memory:
    """What a session leaves to the next one, besides the weights that the model now has.

    sessions: how many have been. running: R_t per target, [out, in]; only under merge `cumulative`,
    which trains on from the running sum and deploys another model.
    """

    sessions: int
    history: Mapping[str, LayerHistory]
    head: Head
    running: Mapping[str, torch.Tensor] | None = None


def first_memory(
    model: LoadedModel,
    targets: tuple[Target, ...],
    config: AdaptConfig,
    task_type: TaskType,
    session_targets: npt.NDArray[np.str_] | npt.NDArray[np.float32],
) -> Memory:
    """The memory before the first session: empty history, the base's own head or an empty one."""
    task = TASKS[task_type]
    if not task.has_head and config.head.kind in ("analytic", "label-text"):
        raise UsageError(
            f"--head {config.head.kind}",
            expected=f"a kind of task with a head of its own, not {task_type}",
            found="a model that yields its outputs by itself",
            remedy="leave --head out",
        )
    regression = task_type == "regression"
    analytic = task.has_head and uses_analytic_head(model, config)
    labels = task.own_labels
    weight, bias = torch.zeros(len(labels), model.feature_size), torch.zeros(len(labels))
    if model.base_head is not None and not analytic:
        labels = task.own_labels or model.base_head.labels
        weight, bias = model.base_head.weight.clone(), model.base_head.bias.clone()
    head = Head(
        task_type,
        labels,
        weight,
        bias,
        empty_statistics(model.feature_size, labels) if analytic else None,
        float(np.std(session_targets.astype(np.float64))) or 1.0 if regression else 1.0,
    )
    return Memory(0, {t.name: empty_layer(*t.shape) for t in targets}, head)


def uses_analytic_head(model: LoadedModel, config: AdaptConfig) -> bool:
    """`auto` keeps a classifier that the base brought along, and is analytic everywhere else."""
    kind = config.head.kind
    if kind == "analytic" and model.base_head is not None and not model.base_head.has_bias:
        raise UsageError(
            "--head analytic",
            expected="a base whose classifier has a bias",
            found=f"{model.base_head.module_name}, which has none",
            remedy="leave --head out",
        )
    return kind == "analytic" or (kind == "auto" and model.base_head is None)
