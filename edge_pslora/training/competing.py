"""Which labels a sample is trained against, with an analytic head."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from edge_pslora.config import Compete

MOST_MISTAKEN = 0.25  # of a session's samples, among its own labels; beyond it all labels compete


@dataclass(frozen=True)
class Competing:
    """labels: int64 [k], ascending; None: all. note: a sentence for people, where there is one to say."""

    labels: torch.Tensor | None
    note: str = ""


ALL_COMPETE = Competing(None)


def choose_competing(
    compete: Compete, count: int, targets: torch.Tensor, logits: torch.Tensor, wanted: torch.Tensor
) -> Competing:
    """Told to keep new samples away from all old labels at once, an adapter moves the features of
    everything; the head, solved again over all samples, settles who answers without that. So a session's
    labels compete among themselves. Where features do not tell these apart, to train on that alone
    teaches little that lasts, and what tells the session from the others is what is left to learn.
    One label alone has no other to be told from.

    count: labels that the head knows. targets: int64 [N] of the session. logits [M, count] of some of
    its samples, by a head that has not seen them, and their targets int64 [M].
    """
    present = torch.unique(targets)
    if compete == "all" or not 1 < len(present) < count:
        return ALL_COMPETE
    if compete == "session":
        return Competing(present)
    share = mistaken(logits, present, wanted)
    if share <= MOST_MISTAKEN:
        return Competing(present)
    return Competing(
        None,
        f"{share:.0%} of the samples are taken for another label of this session, so all labels compete.",
    )


def mistaken(logits: torch.Tensor, among: torch.Tensor, wanted: torch.Tensor) -> float:
    """The share of samples [M, C] whose best label among int64 [k] is not the one wanted int64 [M]."""
    return float((among[logits[:, among].argmax(1)] != wanted).float().mean())
