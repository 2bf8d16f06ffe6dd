"""What a session leaves to the next one, and what the first one starts from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from edge_pslora.config import AdaptConfig, HeadKind
from edge_pslora.core.analytic_head import empty_statistics
from edge_pslora.core.history import LayerHistory, empty_layer
from edge_pslora.errors import UsageError
from edge_pslora.models.types import LoadedModel
from edge_pslora.training.head import VALUE_LABEL, Head
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
    session_targets: npt.NDArray[np.str_] | npt.NDArray[np.float32],
) -> Memory:
    """The memory before the first session: empty history, the base's own head or an empty one."""
    regression = session_targets.dtype.kind == "f"
    kind = head_kind(model, config, regression=regression)
    labels: tuple[str, ...] = VALUE_LABEL if regression else ()
    weight, bias = torch.zeros(len(labels), model.feature_size), torch.zeros(len(labels))
    if model.base_head is not None and kind == "linear":
        labels = VALUE_LABEL if regression else model.base_head.labels
        weight, bias = model.base_head.weight.clone(), model.base_head.bias.clone()
    head = Head(
        "regression" if regression else "classification",
        labels,
        weight,
        bias,
        empty_statistics(model.feature_size, labels) if kind == "analytic" else None,
        float(np.std(session_targets.astype(np.float64))) or 1.0 if regression else 1.0,
        template=DEFAULT_TEMPLATE if kind == "label-text" else None,
    )
    return Memory(0, {t.name: empty_layer(*t.shape) for t in targets}, head)


def head_kind(model: LoadedModel, config: AdaptConfig, *, regression: bool) -> HeadKind:
    """`auto` keeps a classifier that the base brought along, and is analytic everywhere else
    (measured: docs/HEADS.md).

    Raises:
        UsageError: a kind that this model or this task cannot have.
    """
    kind, base = config.head.kind, model.base_head
    if kind == "auto":
        return "analytic" if base is None else "linear"
    if kind == "analytic" and base is not None and not base.has_bias:
        raise _unfit(
            kind, "a base whose classifier has a bias", f"{base.module_name}, which has none"
        )
    if kind == "label-text":
        if model.source.modality != "text" or regression:
            found = "values" if regression else f"{model.source.modality} data"
            raise _unfit(kind, "texts with labels, since classes are their names' texts", found)
        if base is not None:
            raise _unfit(kind, "an encoder without a classifier", f"{base.module_name}")
    return kind


def _unfit(kind: str, expected: str, found: str) -> UsageError:
    return UsageError(f"--head {kind}", expected=expected, found=found, remedy="leave --head out")
