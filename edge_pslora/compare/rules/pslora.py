"""PS-LoRA as a rule of the one trainer: the product's stability loss, history and merge rules.

The product itself (`run_session`) is a method of its own. This is its maths where something is joined
to it that a session of the product does not have: stored samples, a weight that follows the data, a
line search. arXiv 2512.08960, Eq. 4 and 5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from edge_pslora.compare.rule import Round, Step, updates
from edge_pslora.config import MergeRule, StabilityConfig
from edge_pslora.core.history import LayerHistory, empty_layer, fold, pool_bytes
from edge_pslora.core.stability import stability_target
from edge_pslora.core.stability_loss import stability_terms
from edge_pslora.training.merging import merge_all
from edge_pslora.training.penalty import Penalty, prepare_penalty, row_offset

Weight = Callable[[Round, Step], float]


class PsLora:
    """weight: of the loss at a step; None: as configured. merge: how the update joins what is deployed.

    history: S in the product's rank-k factors, under its byte budget.
    """

    def __init__(
        self,
        stability: StabilityConfig | None = None,
        merge: MergeRule = "constructive",
        weight: Weight | None = None,
    ) -> None:
        self.stability = stability or StabilityConfig()
        self.merge = merge
        self.weight: Weight = weight or (lambda round, step: self.stability.weight)
        self.history: dict[str, LayerHistory] = {}
        self.penalty: Penalty | None = None
        self.position = 0

    def begin(self, round: Round) -> None:
        if not self.history:
            self.history = {n: empty_layer(*a.target.shape) for n, a in round.adapters.items()}
        targets = {
            name: stability_target(*self.history[name].factors(), _rms(round.base(weight_name)))
            for name, weight_name in ((n, a.target.weight_name) for n, a in round.adapters.items())
        }
        seed = round.config.train.seed
        self.penalty = prepare_penalty(round.adapters, targets, self.stability, seed, round.session)
        self.position = 0

    def loss(self, round: Round, step: Step) -> torch.Tensor | None:
        weight = self.weight(round, step)
        if self.penalty is None or not self.penalty.groups or weight == 0:
            return None
        value = weight * stability_loss(self.penalty, self.position)
        self.position += 1
        most = self.stability.most_pull
        if most is None:
            return value
        trained = [p for a in round.adapters.values() for p in (a.A, a.B) if p.requires_grad]
        task, pull = (_gradient_norm(loss, trained) for loss in (step.task_loss, value))
        return min(1.0, most * task / max(pull, 1e-30)) * value

    def after_step(self, round: Round) -> None:
        pass

    def end(self, round: Round) -> dict[str, torch.Tensor]:
        self.remember(round, 1.0)
        return merge_all(self.merge, round.past, updates(round), round.session)

    def remember(self, round: Round, share: float) -> None:
        """Folds `share` of each update into the history."""
        shapes = {name: layer.shape for name, layer in self.history.items()}
        self.history = fold(
            self.history,
            {
                n: (share * a.scaling * a.B.detach(), a.A.detach())
                for n, a in round.adapters.items()
            },
            pool_bytes(shapes, round.config.budget.history_bytes),
        )

    @property
    def kept_bytes(self) -> int:
        return sum(layer.packed.numel() for layer in self.history.values())


def stability_loss(penalty: Penalty, position: int) -> torch.Tensor:
    """Mean over the layers of L_s at a step counted from 0, as a scalar that autograd can follow.

    Value and gradients are the closed form's: what is linear in A and B here only carries them.
    """
    config = penalty.config
    offset = row_offset(position, config.row_stride, penalty.seed, penalty.session)
    parts = []
    for group in penalty.groups:
        A = torch.stack([adapter.A for adapter in group.adapters])
        B = torch.stack([adapter.B for adapter in group.adapters])
        with torch.no_grad():
            terms = stability_terms(
                A, B, group.adapters[0].scaling, group.stack, config, offset, penalty.engine
            )
        carrier = (A * terms.grad_A).sum() + (B * terms.grad_B).sum()
        parts.append(carrier - carrier.detach() + terms.loss.sum())
    return torch.stack(parts).sum() / penalty.layers


def _gradient_norm(loss: torch.Tensor, parameters: Sequence[torch.Tensor]) -> float:
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    sizes = [torch.linalg.vector_norm(g) for g in found if g is not None]
    return float(torch.linalg.vector_norm(torch.stack(sizes))) if sizes else 0.0


def _rms(weight: torch.Tensor) -> float:
    return float(weight.float().pow(2).mean().sqrt())
