"""The merge of one tensor against memcpy on buffers of the same size, one thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.core_setup import SEED, Part, Sizes, threads_set_to
from benchmarks.table import Row, median_row
from edge_pslora.config import MERGE_RULES, AdaptConfig
from edge_pslora.core.merge import merge_into, merge_step

DEFAULT = AdaptConfig().merge
NEW_ARRAY, WHERE = f"{DEFAULT} into a new array", "torch.where"
SESSION = 2  # any but the first: `average` then divides
BATCH_BYTES = 64 << 20  # small buffers are merged several times in one timing


@dataclass(frozen=True)
class MergeSpeed:
    """Bytes read and written in a second, once per repeat: by this way, and by the memcpy of buffers
    of the same size that ran just before."""

    way: str
    buffer_bytes: int
    bytes_per_second: tuple[float, ...]
    memcpy: tuple[float, ...]


def merge_part(sizes: Sizes) -> Part:
    """Every rule and torch.where over memcpy, at every buffer size; the default has the target."""
    rows: list[Row] = []
    notes: list[str] = []
    with threads_set_to(1):
        for size in sizes.buffers:
            speeds = measure_merge(size, sizes.repeats)
            found = {speed.way: _row(speed) for speed in speeds}
            rows += [_copy_row(speeds), *found.values()]
            default = found[DEFAULT]
            if not default.met:
                notes.append(
                    f"{default.figure}: not memory but the operations on blocks in the cache are the "
                    f"limit; one alone, with the check for NaN (rule none), "
                    f"reaches {found['none'].measured:.2f}"
                )
    return Part(rows, notes)


def _row(speed: MergeSpeed) -> Row:
    ratios = [a / b for a, b in zip(speed.bytes_per_second, speed.memcpy, strict=True)]
    name = f"merge {speed.way}, {_size(speed)} / memcpy"
    target = 0.5 if speed.way == DEFAULT else None
    return median_row(name, ratios, "ratio", "higher", target)


def _copy_row(speeds: Sequence[MergeSpeed]) -> Row:
    gigabytes = [value / 1e9 for speed in speeds for value in speed.memcpy]
    return median_row(f"memcpy, {_size(speeds[0])}", gigabytes, "GB/s", "higher")


def _size(speed: MergeSpeed) -> str:
    return f"{speed.buffer_bytes / (1 << 20):g} MiB"


def measure_merge(buffer_bytes: int, repeats: int) -> list[MergeSpeed]:
    """Every rule and torch.where on float32 operands of this size, in turn, each after a memcpy."""
    copy, ways = merge_ways(buffer_bytes // 4)
    calls = max(1, BATCH_BYTES // buffer_bytes)

    def speed(way: Callable[[], object], moved: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            way()
        return moved * buffer_bytes * calls / (time.perf_counter() - start)

    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, way in ways.items():
            copied = speed(copy, moved=2)
            merged = speed(way, moved=3)
            if repeat:  # the first round brings pages and caches
                taken[name].append((merged, copied))
    return [
        MergeSpeed(name, buffer_bytes, tuple(m for m, _ in found), tuple(c for _, c in found))
        for name, found in taken.items()
    ]


def merge_ways(count: int) -> tuple[Callable[[], object], dict[str, Callable[[], object]]]:
    """memcpy of `count` random numbers, and the ways to merge two such arrays.

    The result goes into memory that is there already, unless the name says otherwise; a quarter
    of the updates shrink the past.
    """
    generator = np.random.default_rng(SEED)
    older, newer = (generator.standard_normal(count, dtype=np.float32) for _ in range(2))
    out = np.zeros_like(older)
    ways: dict[str, Callable[[], object]] = {}
    for rule in MERGE_RULES:
        ways[rule] = lambda rule=rule: merge_into(out, rule, older, newer, SESSION)  # type: ignore[misc]
    ways[NEW_ARRAY] = lambda: merge_step(DEFAULT, older, newer, SESSION)
    ways[WHERE] = lambda: where(torch.from_numpy(older), torch.from_numpy(newer))
    return lambda: np.copyto(out, older), ways


def where(older: torch.Tensor, newer: torch.Tensor) -> torch.Tensor:
    """`constructive` as it is written down with torch."""
    total = older + newer
    return torch.where(total.abs() >= older.abs(), total, older)
