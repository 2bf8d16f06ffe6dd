"""Trying int8 on held-out samples: how much the headline figure drops, and which layers to spare."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edge_pslora.errors import BudgetError, GateRefusedError
from edge_pslora.exporters import onnx_quantize as tool
from edge_pslora.exporters.export_options import Quantization
from edge_pslora.exporters.onnx_prepare import Layer
from edge_pslora.exporters.quantize_search import Found, search
from edge_pslora.exporters.run import open_onnx
from edge_pslora.models.types import EncodedInputs
from edge_pslora.pages.words import METRIC_NAMES
from edge_pslora.pipeline.judging import Held, judged
from edge_pslora.pipeline.reopening import Reopened
from edge_pslora.tasks import TASKS

MOST_JUDGED = 1000  # samples; more are thinned out evenly
MOST_CALIBRATED = 100  # samples that scales are found with
MOST_RATED = 16  # of these, samples that layers are ranked with
_MIX = 7  # every how manyth sample comes next, see _one_by_one
# A search that takes longer is given up and nothing is written: what is found must not depend on how
# fast the machine is.
SEARCH_SECONDS = 1800.0
# The head is left in float when it holds less than this of all weights: it decides the answers, and
# there is next to nothing to win.
HEAD_SHARE = 0.02
_RATED_VALUES = 1 << 16  # of one sample's outputs: those of a language model would not fit


@dataclass(frozen=True)
class Chosen:
    """bits: of a weight. found: what the search gave; in_float: with the head, when that is spared.

    evaluations: int8 files that were judged, those with weights of 7 bits included.
    """

    bits: int
    found: Found
    in_float: tuple[str, ...]
    evaluations: int


@dataclass(frozen=True)
class Trial:
    """What the search needs. before: the float file's headline figure on `held`.

    samples: some of `held`, each a batch of its own: padding would widen the range of what a layer sees.
    outputs: of the float file for the first MOST_RATED of them. deadline: by time.monotonic.
    """

    prepared: tool.Prepared
    kind: Quantization
    model: Reopened
    held: Held
    before: float
    samples: Sequence[tool.Batch]
    outputs: Sequence[npt.NDArray[Any]]
    deadline: float

    @staticmethod
    def begin(source: Path, scratch: Path, kind: Quantization, model: Reopened) -> Trial:
        deadline = time.monotonic() + SEARCH_SECONDS
        held = _thinned(model.held)
        samples = _one_by_one(held)
        prepared = tool.prepare_file(source, scratch)
        before = _headline(source, held, model)
        outputs = _outputs(source, samples[:MOST_RATED])
        return Trial(prepared, kind, model, held, before, samples, outputs, deadline)

    def layers(self) -> tuple[list[Layer], list[Layer]]:
        """(those to quantise, those spared from the start)."""
        every = self.prepared.layers
        total = sum(layer.bytes for layer in every)
        spared = [x for x in every if x.is_head and x.bytes < HEAD_SHARE * total]
        return [layer for layer in every if layer not in spared], spared

    def quantized(self, names: frozenset[str], bits: int, path: Path) -> Path:
        """Writes `path` with these layers in int8."""
        self._check_time()
        tool.quantize(self.prepared, self.kind, names, bits, self.samples, path)
        return path

    def headline(self, path: Path) -> float:
        """The headline figure of a file on `held`."""
        return _headline(path, self.held, self.model)

    def _check_time(self) -> None:
        if time.monotonic() > self.deadline:
            raise BudgetError(
                "--quantize",
                expected=f"a search of at most {SEARCH_SECONDS:.0f} seconds",
                found="a longer one; nothing was written",
                remedy="give fewer samples by --data, allow more by --max-drop, or export in float",
            )


def choose(trial: Trial, allowed: float) -> Chosen:
    """Weights of 7 bits where all layers in int8 lose no more than is allowed, else of 8 and a search."""
    layers, spared = trial.layers()
    names = frozenset(layer.name for layer in layers)
    path = trial.prepared.folder / "trial.onnx"

    def drop_with(bits: int) -> Callable[[frozenset[str]], float]:
        def drop(in_float: frozenset[str]) -> float:
            trial.quantized(names - in_float, bits, path)
            return trial.before - trial.headline(path)

        return drop

    def error(alone: frozenset[str]) -> float:
        trial.quantized(alone, tool.FULL_BITS, path)
        found = _outputs(path, trial.samples[:MOST_RATED])
        return _distance(trial.outputs, found)

    safe = drop_with(tool.SAFE_BITS)(frozenset())
    bits = tool.SAFE_BITS if safe <= allowed else tool.FULL_BITS
    if bits == tool.SAFE_BITS:
        found = Found((), safe, True, 1, 0)
    else:
        ordered = [layer.name for layer in layers]
        found = search(ordered, drop_with(bits), error, allowed)
    if not found.enough:
        raise _refused(trial, found, allowed)
    in_float = {*found.in_float, *(layer.name for layer in spared)}
    kept = tuple(x.name for x in trial.prepared.layers if x.name in in_float)
    again = int(bits != tool.SAFE_BITS)
    return Chosen(bits, found, kept, found.evaluations + again)


def _refused(trial: Trial, found: Found, allowed: float) -> GateRefusedError:
    before, tried = trial.before, len(found.in_float)
    return GateRefusedError(
        "--quantize",
        expected=f"a drop of {word(trial)} of at most {allowed:g} on {len(trial.held.targets)} samples",
        found=f"{before:.4f} in float and {before - found.drop:.4f} in {trial.kind}, with {tried} of "
        f"{len(trial.prepared.layers)} layers left in float; nothing was written",
        remedy="allow more by --max-drop, try the other kind, or export in float",
    )


def word(trial: Trial) -> str:
    """How the headline figure is called."""
    return METRIC_NAMES[TASKS[trial.model.memory.head.task_type].metric]


def _headline(path: Path, held: Held, model: Reopened) -> float:
    runner = open_onnx(path, threads=torch.get_num_threads())
    return judged(runner, held, model.memory.head)[0].accuracy


def _outputs(path: Path, batches: Sequence[Mapping[str, Any]]) -> list[npt.NDArray[Any]]:
    runner = open_onnx(path, threads=torch.get_num_threads())
    flat = (runner.run(batch).reshape(-1) for batch in batches)
    return [values[:: -(-values.size // _RATED_VALUES)].copy() for values in flat]


def _distance(expected: Sequence[npt.NDArray[Any]], found: Sequence[npt.NDArray[Any]]) -> float:
    """||found - expected|| / ||expected|| over all samples."""
    pairs = zip(expected, found, strict=True)
    lost = sum(float(np.square(f - e, dtype=np.float64).sum()) for e, f in pairs)
    whole = sum(float(np.square(e, dtype=np.float64).sum()) for e in expected)
    return float(np.sqrt(lost / max(whole, np.finfo(np.float64).tiny)))


@dataclass(frozen=True)
class _Rows:
    """Some of the samples, as EncodedInputs."""

    inputs: EncodedInputs
    rows: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: npt.NDArray[np.int64]) -> dict[str, torch.Tensor]:
        return self.inputs.batch(self.rows[indices])

    def lengths(self) -> npt.NDArray[np.int64]:
        return self.inputs.lengths()[self.rows]

    def to_arrays(self, indices: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]]:
        return self.inputs.to_arrays(self.rows[indices])


def _even(count: int, most: int) -> npt.NDArray[np.int64]:
    """At most `most` of the numbers below `count`, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def _one_by_one(held: Held) -> list[tool.Batch]:
    rows = _even(len(held.targets), MOST_CALIBRATED)
    # in an order that mixes them, so that the first few stand for all
    rows = np.concatenate([rows[k::_MIX] for k in range(_MIX)])
    batches = (held.inputs.batch(rows[k : k + 1]) for k in range(len(rows)))
    return [{name: t.numpy() for name, t in batch.items()} for batch in batches]


def _thinned(held: Held) -> Held:
    rows = _even(len(held.targets), MOST_JUDGED)
    return Held(_Rows(held.inputs, rows), held.targets[rows])
