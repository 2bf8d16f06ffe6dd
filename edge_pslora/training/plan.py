"""How one session is computed: what EngineConfig left open, decided. The same for a resumed run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from edge_pslora.config import AdaptConfig

UsedPrecision = Literal["float32", "bf16"]
UsedPrefix = Literal["off", "exact", "bf16", "int8"]


@dataclass(frozen=True)
class TrainingPlan:
    """micro_batch: samples in one forward and backward pass of training; feature_batch: of inference.

    cut: whether the layers below all that is trained are told from the others: they compute in float32.
    prefix: how what they give is kept on disk, "off": not at all.
    channels_last: pictures lie so in memory during the session (training/layout.py).
    peak_bytes: predicted resident memory of the process at its largest, 0 where nothing was predicted.
    returning: freed memory goes back to the system at once (training/allocator.py).
    device: of the model's passes and the optimiser's steps, by torch's name (training/placing.py).
    """

    micro_batch: int
    feature_batch: int
    precision: UsedPrecision = "float32"
    checkpointing: bool = False
    cut: bool = False
    prefix: UsedPrefix = "off"
    channels_last: bool = False
    peak_bytes: int = 0
    returning: bool = False
    device: str = "cpu"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def plain_plan(config: AdaptConfig) -> TrainingPlan:
    """Whole batches in float32, nothing kept on disk: what every other plan is held against."""
    return TrainingPlan(config.train.batch_size, config.train.batch_size)
