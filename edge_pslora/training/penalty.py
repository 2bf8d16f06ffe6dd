"""The stability loss in the loop: which layers are computed together, which rows at which step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from edge_pslora.config import StabilityConfig
from edge_pslora.core.stability import StabilityStack, StabilityTarget, stack_targets
from edge_pslora.core.stability_large import LargeTiles
from edge_pslora.core.stability_loss import computing_dtype, stability_terms
from edge_pslora.core.stability_tiles import TileEngine, in_place_tiles
from edge_pslora.training.head_rows import RowPenalty, add_to_rows, row_stability
from edge_pslora.training.inject import Adapter

_ROWS = 7  # keeps the draw of the rows apart from other draws with the same seed
_WITHOUT_FLOAT64 = (
    "mps",
)  # there the loss is computed on the CPU, with which it shares its memory


@dataclass(frozen=True)
class LayerGroup:
    """Adapters of one shape and what their updates are compared with, in the same order."""

    adapters: tuple[Adapter, ...]
    stack: StabilityStack


@dataclass(frozen=True)
class Penalty:
    """weight * (mean over all layers of L_s + L_s of the rows), ready for the steps of one session.

    engine: owns the scratch, for all groups and steps; None where no group looks at the history.
    rows: of a linear head, or None.
    """

    groups: tuple[LayerGroup, ...]
    config: StabilityConfig
    engine: TileEngine | None
    seed: int
    session: int
    rows: RowPenalty | None = None

    @property
    def layers(self) -> int:
        return sum(len(group.adapters) for group in self.groups)


def prepare_penalty(
    adapters: Mapping[str, Adapter],
    targets: Mapping[str, StabilityTarget],
    config: StabilityConfig,
    seed: int,
    session: int,
    rows: RowPenalty | None = None,
) -> Penalty:
    """Groups the layers by shape, puts what they are compared with on their device, allocates scratch."""
    if not config.active:
        return Penalty((), config, None, seed, session)
    kinds: dict[tuple[object, ...], list[str]] = {}
    for name, adapter in adapters.items():
        A, B = adapter.A, adapter.B
        kind = (A.shape, B.shape, A.dtype, B.dtype, A.device, adapter.scaling)
        kinds.setdefault(kind, []).append(name)
    groups = []
    for names in kinds.values():
        # neighbours of similar rank: a tile is as wide as the largest rank in it
        names.sort(key=lambda name: -targets[name].rank)
        A = adapters[names[0]].A
        device = "cpu" if A.device.type in _WITHOUT_FLOAT64 else A.device
        stack = stack_targets(
            [targets[name] for name in names], config, computing_dtype(A.dtype), device
        )
        groups.append(LayerGroup(tuple(adapters[name] for name in names), stack))
    engine = _engine([g.stack for g in groups if not g.stack.silent])
    return Penalty(tuple(groups), config, engine, seed, session, rows)


def _engine(stacks: list[StabilityStack]) -> TileEngine | None:
    if not stacks:
        return None
    dtype, device = stacks[0].left.dtype, stacks[0].left.device
    if device.type == "cpu":
        return in_place_tiles([stack.shape for stack in stacks], dtype, device)
    return LargeTiles()


@dataclass(frozen=True)
class PenaltyStep:
    """What one step added. Tensors without dimensions.

    value: of the penalty; an unbiased estimate where rows are sampled. norm: of its gradient, as added.
    """

    value: torch.Tensor
    norm: torch.Tensor


@torch.no_grad()
def add_penalty(penalty: Penalty, position: int) -> PenaltyStep | None:
    """Adds the penalty's gradients to those of adapters and rows at step `position`, counted from 0.

    They are the task's before; of the penalty no more is added than `config.most_pull` allows.

    Returns:
        None at a step that is left out (`config.every`), or if the loss is switched off.
    """
    config = penalty.config
    turn, left_out = divmod(position, config.every)
    if not penalty.groups or left_out:
        return None
    offset = row_offset(turn, config.row_stride, penalty.seed, penalty.session)
    weight = config.weight / penalty.layers
    values, norms = [], []
    found: list[torch.Tensor | None] = []
    parts: list[torch.Tensor] = []
    for group in penalty.groups:
        device = group.stack.left.device
        terms = stability_terms(
            torch.stack([adapter.A for adapter in group.adapters]).to(device),
            torch.stack([adapter.B for adapter in group.adapters]).to(device),
            group.adapters[0].scaling,
            group.stack,
            config,
            offset,
            penalty.engine,
        )
        found += [a.A.grad for a in group.adapters] + [a.B.grad for a in group.adapters]
        parts += [*terms.grad_A.unbind(), *terms.grad_B.unbind()]
        values.append(terms.loss.sum())
        norms += [torch.linalg.vector_norm(g).float() for g in (terms.grad_A, terms.grad_B)]
    norm = weight * torch.linalg.vector_norm(torch.stack(norms))
    value = weight * torch.stack(values).sum()
    rows = penalty.rows
    if rows is not None:
        loss, gradient = row_stability(rows, config)
        value = value + config.weight * loss.to(value.device)
        norm = torch.hypot(norm, config.weight * torch.linalg.vector_norm(gradient).to(norm.device))
    share = _share_within(config.most_pull, norm, [*found, *_row_gradients(rows)])
    _add(found, parts, weight * config.every * share)
    if rows is not None:
        add_to_rows(rows, gradient, config.weight * config.every * share)
    return PenaltyStep(value, norm * share)


def _share_within(
    most: float | None, norm: torch.Tensor, task: Sequence[torch.Tensor | None]
) -> float:
    """What of a penalty's gradient with this norm stays, next to the gradients of the task."""
    sizes = [torch.linalg.vector_norm(g).to(norm.device) for g in task if g is not None]
    if most is None or not sizes:
        return 1.0
    allowed = most * float(torch.linalg.vector_norm(torch.stack(sizes)))
    # not finite is for the loop to see
    return min(1.0, allowed / max(float(norm), 1e-30)) if math.isfinite(allowed) else 1.0


def _row_gradients(rows: RowPenalty | None) -> list[torch.Tensor | None]:
    """Of the task, on the rows of a linear head; of labels that are new as well."""
    if rows is None:
        return []
    return [rows.weight.grad, None if rows.bias is None else rows.bias.grad]


def _add(
    gradients: Sequence[torch.Tensor | None], parts: Sequence[torch.Tensor], factor: float
) -> None:
    """gradient += factor * part, for all that there are in one operation."""
    pairs = [(g, part) for g, part in zip(gradients, parts, strict=True) if g is not None]
    if pairs:
        found, others = [g for g, _ in pairs], [part.to(g.device) for g, part in pairs]
        torch._foreach_add_(found, others, alpha=factor)


def row_offset(turn: int, stride: int, seed: int, session: int) -> int:
    """The first row of the sample at the `turn`-th use of the loss: 0 <= offset < stride.

    In `stride` turns every offset comes once, in an order drawn anew each time. A function of its
    arguments alone, so a resumed run takes the same rows.
    """
    if stride == 1:
        return 0
    cycle, place = divmod(turn, stride)
    generator = np.random.Generator(np.random.PCG64([seed, session, cycle, _ROWS]))
    return int(generator.permutation(stride)[place])
