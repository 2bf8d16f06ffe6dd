"""Which runs there are, and which of them a results file already has."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from benchmarks.suite.streams import SuiteStream
from edge_pslora.compare.method import Method
from edge_pslora.compare.results import Result
from edge_pslora.compare.run import ScoredPart, run_digest

Key = tuple[str, str, int, str, int]  # stream, digest, order, method, seed


@dataclass(frozen=True)
class Group:
    """Runs that share a stream as it is loaded: of one seed, in the order that the seed has."""

    stream: SuiteStream
    seed: int
    part: ScoredPart
    methods: tuple[Method, ...]

    @property
    def order(self) -> int:
        return self.seed % self.stream.orders

    @property
    def digest(self) -> str:
        return digest_of(self.stream, self.part)


def digest_of(stream: SuiteStream, part: ScoredPart) -> str:
    """Of the results that this stream gives with its budget as it is now."""
    return run_digest(stream.config(), stream.budget.facts(), part)


def fits(method: Method, stream: SuiteStream) -> bool:
    """Whether the method is for this stream, and affordable on it."""
    if method.needs_head and stream.language:
        return False
    return not stream.only or method.key in stream.only


def plan(
    streams: Sequence[SuiteStream],
    methods: Sequence[Method],
    seeds: int,
    part: ScoredPart,
    done: Collection[Key] = (),
) -> list[Group]:
    """Seed after seed, so that a suite that is stopped has every stream and method alike."""
    groups = []
    for seed in range(seeds):
        for stream in streams:
            group = Group(stream, seed, part, tuple(m for m in methods if fits(m, stream)))
            missing = tuple(m for m in group.methods if key_of(group, m) not in done)
            if missing:
                groups.append(replace(group, methods=missing))
    return groups


def key_of(group: Group, method: Method) -> Key:
    return (group.stream.key, group.digest, group.order, method.key, group.seed)


def keys_done(results: Sequence[Result]) -> set[Key]:
    """A run in several settings was written at once, so any of its results stands for it."""
    return {(r.stream, r.digest, r.order, r.method, r.seed) for r in results}
