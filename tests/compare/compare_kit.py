"""Short streams of blobs on a tiny network."""

from __future__ import annotations

from dataclasses import replace

from edge_pslora.compare.stream import Part, Setting, Stream, make_stream
from edge_pslora.config import AdaptConfig, LoraConfig, TrainConfig
from edge_pslora.data.types import Samples
from tests.tiny import blobs, tiny_model

CONFIG = replace(
    AdaptConfig(),
    lora=LoraConfig(rank=2, factors="float32"),
    train=TrainConfig(epochs=2, batch_size=16, learning_rate=5e-3),
)


def _samples(labels: tuple[str, ...], seed: int, shift: float = 0.0) -> Samples:
    return Samples("array", "classification", *blobs(labels, n=16, seed=seed, shift=shift))


def groups(also: tuple[Setting, ...] = ()) -> Stream:
    """Two labels, then two others."""
    parts = [
        Part("-".join(names), _samples(names, 1), _samples(names, 2))
        for names in (("a", "b"), ("c", "d"))
    ]
    return make_stream("groups", "task-incremental", parts, tiny_model, also=also)


def domains(shifts: tuple[float, ...], valid_shift: float = 0.0) -> Stream:
    """The same three labels in each task, moved."""
    names = ("a", "b", "c")
    parts = [
        Part(
            f"by {s:g}",
            _samples(names, 1, s),
            _samples(names, 2, s),
            _samples(names, 3, s + valid_shift),
        )
        for s in shifts
    ]
    return make_stream("domains", "domain-incremental", parts, tiny_model)
