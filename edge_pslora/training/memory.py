"""What a session leaves to the next one, and what the first one starts from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from edge_pslora.config import AdaptConfig, HeadKind, TaskType
from edge_pslora.core.analytic_head import empty_statistics
from edge_pslora.core.history import LayerHistory, empty_layer
from edge_pslora.errors import UsageError
from edge_pslora.models.types import LoadedModel
from edge_pslora.tasks import TASKS
from edge_pslora.training.head import Head
from edge_pslora.training.label_text import DEFAULT_TEMPLATE
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
) -> Memory:
    """The memory before the first session: empty history, the base's own head or an empty one."""
    task = TASKS[task_type]
    kind = head_kind(model, config, task_type)
    labels = task.own_labels
    weight, bias = torch.zeros(len(labels), model.feature_size), torch.zeros(len(labels))
    if model.base_head is not None and kind == "linear":
        labels = task.own_labels or model.base_head.labels
        weight, bias = model.base_head.weight.clone(), model.base_head.bias.clone()
    head = Head(
        task_type,
        labels,
        weight,
        bias,
        empty_statistics(model.feature_size, labels) if kind == "analytic" else None,
        template=DEFAULT_TEMPLATE if kind == "label-text" else None,
    )
    return Memory(0, {t.name: empty_layer(*t.shape) for t in targets}, head)


def head_kind(model: LoadedModel, config: AdaptConfig, task_type: TaskType) -> HeadKind:
    """`auto` keeps a classifier that the base brought along, and is analytic everywhere else
    (measured: docs/HEADS.md).

    Raises:
        UsageError: a kind that this model or this task cannot have.
    """
    kind, base = config.head.kind, model.base_head
    if not TASKS[task_type].has_head:
        if kind in ("analytic", "label-text"):
            raise _unfit(
                kind,
                f"a kind of task with a head of its own, not {task_type}",
                "a model that yields its outputs by itself",
            )
        return "linear"
    if kind == "auto":
        return "analytic" if base is None else "linear"
    if kind == "analytic" and base is not None and not base.has_bias:
        raise _unfit(
            kind, "a base whose classifier has a bias", f"{base.module_name}, which has none"
        )
    if kind == "label-text":
        if model.source.modality != "text" or task_type != "classification":
            found = f"{model.source.modality} data for {task_type}"
            raise _unfit(kind, "texts for classification: its classes are their names", found)
        if base is not None:
            raise _unfit(kind, "an encoder without a classifier", f"{base.module_name}")
    return kind


def _unfit(kind: str, expected: str, found: str) -> UsageError:
    return UsageError(f"--head {kind}", expected=expected, found=found, remedy="leave --head out")
