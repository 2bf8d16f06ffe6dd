"""What a session will need at its largest, and the fastest way of computing it that fits a budget.

Arithmetic alone: what is measured of a model and of a process comes in, a choice or the least that
would do goes out. All sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

# glibc keeps what is freed in its heap, in pieces that the next tensor does not fit: measured on MiniLM
# and MobileNetV1, steps took 1.3 to 2.1 times what their tensors add up to
HEAP_WASTE = 2.2
# what tensors do not show: kernels' own buffers, the allocator's rounding
KERNEL_SHARE = 1.1
MARGIN = 24 << 20  # of a process from run to run


@dataclass(frozen=True)
class Growth:
    """fixed + each * n bytes for n samples at once."""

    fixed: int
    each: int

    def at(self, samples: int) -> int:
        return self.fixed + self.each * samples


@dataclass(frozen=True)
class Way:
    """One way of computing a step: a name for it (precision, checkpointing) and what it takes."""

    precision: str
    checkpointing: bool
    step: Growth


@dataclass(frozen=True)
class Footprint:
    """What was measured or is known of a session before its first step.

    resident: of the process as it is. features: of a pass without gradients. results: what such passes
    leave, and the algebra on it. trained: adapters, their gradients, moments and copies. merging: what
    merge and history take. exporting: tracing, or rewriting, the graph. proving: onnxruntime and
    torch side by side, by rows at once. ways: the fastest first.
    """

    resident: int
    features: Growth
    results: int
    trained: int
    merging: int
    exporting: int
    proving: Growth
    ways: Sequence[Way]


@dataclass(frozen=True)
class Choice:
    """micro_batch, feature_batch: samples at once in training and in inference. returning: memory goes
    back to the system as soon as it is free, which is slower. peaks: stage -> predicted bytes."""

    micro_batch: int
    feature_batch: int
    way: Way
    returning: bool
    peaks: Mapping[str, int] = field(default_factory=dict)

    @property
    def peak(self) -> int:
        return max(self.peaks.values())


def peaks(found: Footprint, micro: int, batch: int, way: Way, *, returning: bool) -> dict[str, int]:
    """Stage -> the process's largest resident memory in it."""
    waste = KERNEL_SHARE * (1.0 if returning else HEAP_WASTE)
    base = found.resident + MARGIN
    return {
        "features": base + found.results + int(waste * found.features.at(batch)),
        "training": base + found.results + found.trained + int(waste * way.step.at(micro)),
        "merging": base + found.results + found.trained + found.merging,
        "exporting": base + found.trained + found.exporting,
        "checking": base + int(KERNEL_SHARE * found.proving.at(batch)),
    }


def choices(found: Footprint, batch_size: int, micro: int | None = None) -> Iterator[Choice]:
    """All that can be chosen from, the fastest first.

    micro: the micro-batch that the user wants; None: whole batches, halves, ..., single samples.
    """
    sizes = [micro] if micro is not None else halves(batch_size)
    for way in found.ways:
        for returning in (False, True):
            for size in sizes:
                batch = min(batch_size, 2 * size)
                expected = peaks(found, size, batch, way, returning=returning)
                yield Choice(size, batch, way, returning, expected)


def choose(
    found: Footprint, batch_size: int, budget: int | None, micro: int | None = None
) -> Choice | None:
    """The first of `choices` that fits; None: none does. Without a budget: the first."""
    for choice in choices(found, batch_size, micro):
        if budget is None or choice.peak <= budget:
            return choice
    return None


def least(found: Footprint, batch_size: int, micro: int | None = None) -> Choice:
    """The choice that needs the least; of equals the fastest."""
    return min(choices(found, batch_size, micro), key=lambda choice: choice.peak)


def halves(size: int) -> list[int]:
    """size, size / 2 rounded up, ..., 1."""
    found = [size]
    while found[-1] > 1:
        found.append((found[-1] + 1) // 2)
    return found
