"""What a session will need at its largest, and the fastest way of computing it that fits a budget.

Arithmetic alone: what is measured of a model and of a process comes in, a choice or the least that
would do goes out. All sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

# glibc keeps what is freed in its heap, in pieces that the next tensor does not fit: steps took 1.3 to 2.1
# times what their tensors add up to on MiniLM and MobileNetV1, 2.9 with tensors of 19 MB
# (tests/pipeline/budgets_child.py), and once 350 MiB more than three times that. So no budget hangs on it
HEAP_WASTE = 3.0
# what tensors do not show: kernels' own buffers, the allocator's rounding
KERNEL_SHARE = 1.1
MARGIN = 24 << 20  # of a process from run to run
FOUND_WITH = 5  # samples with which the cut is looked for (training/prefix_cut.py)


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
    merge and history take. left: what they leave behind; kernels: what the steps do, at most: never
    more than a step takes. exporting: tracing, or rewriting, the graph. proving: onnxruntime and torch
    side by side, by rows at once. ways: the fastest first.
    """

    resident: int
    features: Growth
    results: int
    trained: int
    merging: int
    left: int
    kernels: int
    exporting: int
    proving: Growth
    ways: Sequence[Way]


@dataclass(frozen=True)
class Choice:
    """micro_batch, feature_batch: samples at once in training and in inference. returning: memory goes
    back to the system as soon as it is free: what a budget is kept by. peaks: stage -> predicted bytes."""

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
    step = int(waste * max(way.step.at(micro), found.features.at(micro)))
    after = base + found.results + found.left + min(found.kernels, step)
    return {
        "features": base + found.results + int(waste * found.features.at(batch)),
        # what lies below the adapters is computed in float32, as features are
        "training": base + found.results + found.trained + step,
        "merging": base + found.results + found.trained + found.merging,
        "exporting": after + found.trained + found.exporting,
        "checking": after + int(KERNEL_SHARE * found.proving.at(batch)),
    }


def finding_peak(found: Footprint) -> int:
    """The process's largest resident memory while it is found where training can start.

    Five samples go through in float32, with what autograd keeps and a copy of every result, which is at
    most as much again. The process gives memory back at once then.
    """
    largest = max(
        way.step.at(FOUND_WITH) * (2 if way.precision == "float32" else 4) for way in found.ways
    )
    return found.resident + MARGIN + int(KERNEL_SHARE * largest)


def choose(
    found: Footprint, batch_size: int, budget: int | None, micro: int | None = None
) -> Choice | None:
    """The fastest way that fits, with the largest parts that fit; None: none does.

    budget: None: all fits. micro: the micro-batch that the user wants; None: whole batches, halves,
    ..., single samples.
    """
    sizes, returning = halves(batch_size), budget is not None
    for way in found.ways:
        for size in sizes if micro is None else [micro]:
            expected = peaks(found, size, 1, way, returning=returning)
            if budget is not None and max(expected.values()) > budget:
                continue
            # what training takes does not depend on it: the largest that fits as well
            for batch in sizes:
                expected = peaks(found, size, batch, way, returning=returning)
                if budget is None or max(expected.values()) <= budget:
                    return Choice(size, batch, way, returning, expected)
    return None


def least(found: Footprint, batch_size: int, micro: int | None = None) -> Choice:
    """The choice that needs the least; of equals the fastest."""
    size = min(micro or 1, batch_size)
    options = [
        Choice(size, 1, way, True, peaks(found, size, 1, way, returning=True)) for way in found.ways
    ]
    return min(options, key=lambda choice: choice.peak)


def halves(size: int) -> list[int]:
    """size, size / 2 rounded up, ..., 1."""
    found = [size]
    while found[-1] > 1:
        found.append((found[-1] + 1) // 2)
    return found
