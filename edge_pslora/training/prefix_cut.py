"""Where training can start: the lowest point of a model from which on a forward pass can be replayed.

Nothing is assumed of the architecture. The output of one module call, the boundary, is what will be kept;
calls before it answer with NaN, so that any way around the boundary shows; and it is used only when the
outputs are those of a full pass, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edge_pslora.models.failures import FOREIGN_ERRORS, first_line
from edge_pslora.models.types import Backbone, EncodedInputs
from edge_pslora.training.half_base import half_base
from edge_pslora.training.layout import is_channels_last
from edge_pslora.training.prefix_trace import Call, trace
from edge_pslora.training.stand_ins import (
    Answer,
    CallId,
    IdleCall,
    answering,
    stand_in,
    the_tensor,
    with_tensor,
)

LEAST_SHARE = 0.05  # of a forward pass: below, reading the rows takes what skipping saves
LARGEST_DIFFERENCE = 1e-4  # of the largest output, for samples whose rows came from other batches
MOST_OF = 0.9  # a boundary is of use where this share of what lies below it can be skipped
MOST_CANDIDATES = 24  # boundaries that are tried, uppermost first

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Axis:
    """size = constant + batch * B + length * T for B samples of at most T positions."""

    constant: int
    batch: int = 0
    length: int = 0

    def size(self, samples: int, longest: int) -> int:
        return self.constant + self.batch * samples + self.length * longest


@dataclass(frozen=True)
class Skipped:
    """A call that is not computed; form: its output in the probe."""

    call: CallId
    form: Any
    axes: tuple[Axis, ...]


@dataclass(frozen=True)
class Cut:
    """boundary: the call whose output is kept, [B, ...]; skipped: those before it; share: of the
    multiplications of a forward pass that are then not done; idle: functions outside of its modules that
    need not be computed either."""

    boundary: Skipped
    skipped: tuple[Skipped, ...]
    share: float
    idle: frozenset[IdleCall] = frozenset()

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of those whose calls are not computed."""
        return tuple(dict.fromkeys(s.call[0] for s in (*self.skipped, self.boundary)))

    def answers(
        self,
        kept: torch.Tensor,
        longest: int,
        fill: float = 0.0,
        seen: set[IdleCall] | None = None,
    ) -> dict[CallId, Answer]:
        """How the calls are answered where `kept` [B, ...] is what the boundary gives.

        seen: takes up functions that need not be computed, where `fill` is NaN.
        """
        samples = len(kept)
        pictures = False

        def nothing(skipped: Skipped) -> Answer:
            sizes = [axis.size(samples, longest) for axis in skipped.axes]

            def answer(forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
                nonlocal pictures
                pictures = pictures or any(is_channels_last(a) for a in (*args, *kwargs.values()))
                # no memory, and writing into it fails
                values = kept.new_full((), fill).expand(sizes)
                return with_tensor(
                    skipped.form, stand_in(values, self.idle if seen is None else seen)
                )

            return answer

        def boundary(forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            last = pictures or any(is_channels_last(a) for a in (*args, *kwargs.values()))
            laid = kept.contiguous(memory_format=torch.channels_last) if last else kept
            return with_tensor(self.boundary.form, laid)

        return {s.call: nothing(s) for s in self.skipped} | {self.boundary.call: boundary}


@dataclass(frozen=True)
class NoCut:
    """why: one sentence's end, for people."""

    why: str


def find_cut(
    backbone: Backbone, trained: Sequence[nn.Parameter], inputs: EncodedInputs
) -> Cut | NoCut:
    """trained: every parameter that the session changes, base weights of targets among them.

    Args:
        inputs: the session's; five of them, short and long, are tried.
    """
    if len(inputs) < 5:
        return NoCut("there are fewer than five samples")
    lengths = inputs.lengths()
    order = np.argsort(lengths, kind="stable").astype(np.int64)
    first = np.array([order[2], order[len(order) // 2], order[-1]])
    # of another length wherever there is one: what follows the length would look constant
    second = order[:2] if lengths[order[1]] < lengths[order[-1]] else order[[0, 0]]
    try:
        return _search(backbone, trained, inputs, first, second)
    except FOREIGN_ERRORS as problem:
        return NoCut(f"the model cannot be traced ({first_line(problem)})")


def holds_in_half(backbone: Backbone, cut: Cut, inputs: EncodedInputs) -> bool:
    """Whether steps in bf16 above the cut are the same, bit for bit, with kept rows and without.

    True where the model cannot be computed in bf16 at all: it will be in float32.
    """
    order = np.argsort(inputs.lengths(), kind="stable").astype(np.int64)
    probe = _Probe(backbone, inputs, order[[2, len(order) // 2, -1]])
    rows: list[torch.Tensor] = []

    def keep(forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        output = forward(*args, **kwargs)
        kept = the_tensor(output)
        assert kept is not None
        rows.extend(kept.clone())
        return output

    try:
        with torch.no_grad():
            with answering(backbone.model, {cut.boundary.call: keep}):
                backbone(**probe.batch)
            kept = padded(rows, probe.lengths, cut.boundary.axes)
            with half_base(backbone, {}, cut.modules):
                whole = backbone(**probe.batch)
                found = _replayed(backbone, cut, probe.batch, kept, probe.longest)
    except FOREIGN_ERRORS:
        return True
    return found is not None and torch.equal(whole, found)


def _search(
    backbone: Backbone,
    trained: Sequence[nn.Parameter],
    inputs: EncodedInputs,
    first: Indices,
    second: Indices,
) -> Cut | NoCut:
    parts = [_Probe(backbone, inputs, first), _Probe(backbone, inputs, second)]
    whole = _Probe(backbone, inputs, np.concatenate([first, second]))
    traces = [trace(backbone, trained, part.batch) for part in parts]
    calls, others = (t.calls for t in traces)
    if [c.id for c in calls] != [c.id for c in others]:
        return NoCut("its forward pass takes different ways for different samples")
    known = [_skipped(a, b, parts) for a, b in zip(calls, others, strict=True)]
    why = "nothing of it lies below what is trained"
    costs = {call.id: call.cost for call in calls}
    tried = 0
    for at in reversed(range(len(calls))):
        boundary = known[at]
        below = sum(c.cost for c in calls[: at + 1])
        if below < LEAST_SHARE * traces[0].cost or tried == MOST_CANDIDATES:
            break
        if boundary is None or not _is_kept_by_sample(boundary.axes):
            continue
        tried += 1
        kept = [the_tensor(calls[at].output), the_tensor(others[at].output)]
        skipped = tuple(s for s in known[:at] if s is not None)
        if not _equal(backbone, Cut(boundary, skipped, 0), parts, kept):
            # some of what is skipped reaches the output beside the boundary (rotary angles, say)
            skipped = tuple(
                s for s in skipped if _equal(backbone, Cut(boundary, (s,), 0), parts, kept)
            )
        saved = costs[boundary.call] + sum(costs[s.call] for s in skipped)
        cut, idle = Cut(boundary, skipped, saved / traces[0].cost), set[IdleCall]()
        if saved < MOST_OF * below or not _equal(backbone, cut, parts, kept, idle):
            why = "what is trained hangs on more than one result of the layers below"
            continue
        for found in (replace(cut, idle=frozenset(idle)), cut):
            if _alike(backbone, found, whole, kept):
                return found
        why = "its samples depend on the others in a batch, or on padding"
    return NoCut(why)


class _Probe:
    """A batch and what the full model makes of it."""

    def __init__(self, backbone: Backbone, inputs: EncodedInputs, samples: Indices) -> None:
        self.samples = samples
        self.batch = inputs.batch(samples)
        self.lengths = inputs.lengths()[samples]
        self.longest = int(self.lengths.max())
        with torch.no_grad():
            self.expected = backbone(**self.batch)


def _skipped(a: Call, b: Call, parts: Sequence[_Probe]) -> Skipped | None:
    """How its output's shape follows from a batch; None where it does not."""
    one, two = the_tensor(a.output), the_tensor(b.output)
    if one is None or two is None or one.dim() != two.dim() or not one.is_floating_point():
        return None
    sizes = enumerate(zip(one.shape, two.shape, strict=True))
    axes = tuple(_axis(at, x, y, parts) for at, (x, y) in sizes)
    return None if None in axes else Skipped(a.id, a.output, tuple(x for x in axes if x))


def _axis(at: int, x: int, y: int, parts: Sequence[_Probe]) -> Axis | None:
    samples, longest = [len(p.samples) for p in parts], [p.longest for p in parts]
    batch = Axis(0, batch=x // samples[0])
    length = Axis(x - longest[0], length=1)
    # where both would explain it, the samples come first and the positions after them
    for axis in (Axis(x), *((length, batch) if at else (batch, length))):
        if [axis.size(b, t) for b, t in zip(samples, longest, strict=True)] == [x, y]:
            return axis
    return None


def _is_kept_by_sample(axes: tuple[Axis, ...]) -> bool:
    """[B, ...]: rows of a sample can be told from those of others, and cut at its length."""
    return (
        len(axes) > 1
        and axes[0] == Axis(0, batch=1)
        and all(axis.batch == 0 for axis in axes[1:])
        and sum(axis.length for axis in axes[1:]) <= 1
    )


def _equal(
    backbone: Backbone,
    cut: Cut,
    parts: Sequence[_Probe],
    kept: Sequence[torch.Tensor | None],
    idle: set[IdleCall] | None = None,
) -> bool:
    """Whether the outputs of both probes are those of a full pass, bit for bit, and none is NaN."""
    for part, tensor in zip(parts, kept, strict=True):
        assert tensor is not None
        found = _replayed(backbone, cut, part.batch, tensor, part.longest, idle)
        if found is None or not torch.equal(found, part.expected):
            return False
    return True


def _alike(
    backbone: Backbone, cut: Cut, whole: _Probe, kept: Sequence[torch.Tensor | None]
) -> bool:
    """Whether samples of both probes in one batch, padded anew, are what a full pass makes of them."""
    rows = [row for tensor in kept if tensor is not None for row in tensor]
    together = padded(rows, whole.lengths, cut.boundary.axes)
    found = _replayed(backbone, cut, whole.batch, together, whole.longest)
    if found is None or found.shape != whole.expected.shape:
        return False
    mask = whole.batch.get("attention_mask")
    if mask is not None and found.shape[:2] == mask.shape:  # outputs at padding mean nothing
        real = mask.bool()
        difference, expected = (found - whole.expected)[real], whole.expected[real]
    else:
        difference, expected = found - whole.expected, whole.expected
    return bool(difference.abs().max() <= LARGEST_DIFFERENCE * expected.abs().max())


def _replayed(
    backbone: Backbone,
    cut: Cut,
    batch: Mapping[str, torch.Tensor],
    kept: torch.Tensor,
    longest: int,
    idle: set[IdleCall] | None = None,
) -> torch.Tensor | None:
    try:
        answers = cut.answers(kept.clone(), longest, float("nan"), idle)
        with torch.no_grad(), answering(backbone.model, answers):
            output: torch.Tensor = backbone(**batch)
            return output
    except FOREIGN_ERRORS:  # it wrote into what was skipped, or looked at its values
        return None


def padded(
    rows: Sequence[torch.Tensor], lengths: npt.NDArray[np.int64], axes: tuple[Axis, ...]
) -> torch.Tensor:
    """Rows of some samples, each cut at its length, as one batch with zeros behind them."""
    longest = int(lengths.max())
    batch = rows[0].new_zeros([axis.size(len(rows), longest) for axis in axes])
    for place, row, length in zip(batch, rows, lengths, strict=True):
        real = tuple(slice(axis.size(1, int(length))) for axis in axes[1:])
        place[real] = row[real]
    return batch
