"""What the stability loss compares an update with: the accumulated past S = left right of each layer.

A `StabilityTarget` is one layer. Layers of one shape are computed together: a `StabilityStack` holds N
of them in the form that `stability_loss` and `stability_tiles` read at every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from edge_pslora.config import StabilityConfig

CODE_STEPS = 127  # int8 codes of tanh: off by at most 1 / (2 * 127) in every entry
_CODE_ROWS = 256  # of S at a time, when codes are made


@dataclass(frozen=True)
class StabilityTarget:
    """What L_s of one layer compares an update with; fixed during a session.

    left [out, k] and right [k, in]: factors of S (k = 0: no history yet). rms: root mean square of
    S, in units of weight. scale: in units of weight, > 0.
    """

    left: torch.Tensor
    right: torch.Tensor
    rms: float
    scale: float

    @property
    def rank(self) -> int:
        return self.left.shape[1]

    @property
    def silent(self) -> bool:
        return self.rank == 0 or self.rms == 0.0


@dataclass(frozen=True)
class StabilityStack:
    """N layers [out, in] as the loss reads them; all tensors on one device.

    left [N, out, k] and right [N, k, in], with left right = 2 a S (layers of a rank below k are filled
    up with zeros); ranks: k of each layer. codes int8 [N, out, in]: round(127 tanh(a S)), then k = 0;
    or None. sharpness [N]: a, 0 for a layer whose past is silent. scale [N]: > 0. The last two float64.
    """

    left: torch.Tensor
    right: torch.Tensor
    ranks: tuple[int, ...]
    codes: torch.Tensor | None
    sharpness: torch.Tensor
    scale: torch.Tensor
    silent: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        """N, out, in."""
        return self.left.shape[0], self.left.shape[1], self.right.shape[2]

    @property
    def nbytes(self) -> int:
        """What the stack keeps in memory for a session."""
        kept = (self.left, self.right, self.codes, self.sharpness, self.scale)
        return sum(t.numel() * t.element_size() for t in kept if t is not None)


def stability_target(
    left: torch.Tensor, right: torch.Tensor, base_rms: float, base_share: float = 0.05
) -> StabilityTarget:
    """The target of a layer with history S = left right and base weight of rms `base_rms`.

    scale^2 = rms(S)^2 + (base_share * base_rms)^2: an update is large when it outgrows the past, or,
    before there is a past, a twentieth of the base weight.
    """
    elements = left.shape[0] * right.shape[1]
    gram = (left.T.double() @ left.double()) * (right.double() @ right.T.double())
    rms = float((gram.sum().clamp_min(0.0) / elements).sqrt())
    scale = (rms**2 + (base_share * base_rms) ** 2) ** 0.5
    return StabilityTarget(left, right, rms, scale if scale > 0.0 else 1.0)


def stack_targets(
    targets: Sequence[StabilityTarget],
    config: StabilityConfig,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> StabilityStack:
    """Targets of one shape, for a loss computed in `dtype` (float32 or float64).

    The temperature and the history's form (`config.history_cache`) are settled here. int8 takes one
    byte per entry of the layers, and |code / 127 - tanh(a S)| <= 1 / 254 in every entry. The loss needs
    no factors then; without a direction part it needs no history at all.
    """
    count = len(targets)
    out, size = targets[0].left.shape[0], targets[0].right.shape[1]
    sharpness = [0.0 if t.silent else config.temperature / t.rms for t in targets]
    silent = not config.direction or all(t.silent for t in targets)
    coded = config.history_cache == "int8" and not silent
    ranks = tuple(0 if silent or coded or t.silent else t.rank for t in targets)
    left = torch.zeros(count, out, max(ranks), dtype=dtype, device=device)
    right = torch.zeros(count, max(ranks), size, dtype=dtype, device=device)
    for i, (target, rank, a) in enumerate(zip(targets, ranks, sharpness, strict=True)):
        left[i, :, :rank] = target.left[:, :rank]
        right[i, :rank] = target.right[:rank].to(right) * (2 * a)
    codes = None
    if coded:
        codes = torch.stack(
            [tanh_codes(t, a).to(device) for t, a in zip(targets, sharpness, strict=True)]
        )
    return StabilityStack(
        left,
        right,
        ranks,
        codes,
        torch.tensor(sharpness, dtype=torch.float64, device=device),
        torch.tensor([t.scale for t in targets], dtype=torch.float64, device=device),
        silent,
    )


def tanh_codes(target: StabilityTarget, sharpness: float) -> torch.Tensor:
    """round(127 tanh(a S)), int8 [out, in], some rows at a time."""
    out, size = target.left.shape[0], target.right.shape[1]
    codes = torch.zeros(out, size, dtype=torch.int8, device=target.left.device)
    if target.silent:
        return codes
    for start in range(0, out, _CODE_ROWS):
        S = target.left[start : start + _CODE_ROWS] @ target.right
        codes[start : start + _CODE_ROWS] = S.mul_(sharpness).tanh_().mul_(CODE_STEPS).round_()
    return codes
