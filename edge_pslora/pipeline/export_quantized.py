"""Exporting in int8: quantised, judged on held-out samples, timed, and refused when it costs too much.

The float file is the published one. Every figure of the record comes from files that onnxruntime ran here.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime
import torch

from edge_pslora.errors import BudgetError, GateRefusedError
from edge_pslora.exporters import export_files as files
from edge_pslora.exporters import onnx_quantize as tool
from edge_pslora.exporters.export import ExportJob, Facts
from edge_pslora.exporters.export_options import Quantization
from edge_pslora.exporters.onnx_export import LAYOUT_KEY
from edge_pslora.exporters.onnx_latency import Compared, side_by_side
from edge_pslora.exporters.onnx_prepare import Layer
from edge_pslora.exporters.onnx_write import write_model
from edge_pslora.exporters.quantize_search import Found, search
from edge_pslora.exporters.run import open_onnx
from edge_pslora.models.types import EncodedInputs
from edge_pslora.pipeline.judging import Held, judged
from edge_pslora.pipeline.reopening import Reopened
from edge_pslora.tasks import TASKS
from edge_pslora.workspace import durable, layout

QUANTIZATION_KEY = "pslora.quantization"
MOST_JUDGED = 1000  # samples; more are thinned out evenly
MOST_CALIBRATED = 100  # samples that scales are found with
MOST_RATED = 16  # samples that layers are ranked with
MOST_TIMED = 20  # samples that are timed
SEARCH_SECONDS = (
    900.0  # a search that takes longer is given up: what it finds must not hang on speed
)
# The head is left in float when it holds less than this of all weights: it decides the answers, and
# there is next to nothing to win.
HEAD_SHARE = 0.02
_COPIES = 8  # of the float file, for all that lies in the scratch folder

_WORDS = {"accuracy": "accuracy", "r2": "R2", "f1": "F1", "token_accuracy": "token accuracy"}


def write_quantized(job: ExportJob, model: Reopened) -> Facts:
    """Fills the staged folder with model.onnx in int8, and what goes with it.

    Raises:
        GateRefusedError: whatever is left in float, the headline figure drops by more than allowed.
        ModelError: nothing can be quantised.
        BudgetError: the search took longer than SEARCH_SECONDS.
    """
    kind = job.options.quantize
    assert kind is not None
    durable.require_free_space(job.staged, _COPIES * job.chosen.bytes)
    with tempfile.TemporaryDirectory(dir=job.staged, prefix=".quantizing-") as name:
        scratch = Path(name)
        source = scratch / layout.ONNX
        for part in (layout.ONNX, layout.ONNX_DATA):
            if part == layout.ONNX or job.chosen.has(part):
                files.copy_published(job.chosen, part, scratch / part)
        trial = _Trial.begin(source, scratch, kind, model)
        chosen = _choose(trial, job.options.max_drop)
        facts = _facts(trial, chosen)
        _write(trial, chosen, job, facts)
        written = job.staged / layout.ONNX
        compared = side_by_side(source, written, trial.batches(MOST_TIMED))
        ratio = _bytes(written) / _bytes(source)
    files.copy_side_files(job.opened, job.chosen, job.staged)
    facts["size_ratio"] = ratio
    notes = _notes(trial, chosen, job.options.max_drop, compared, ratio)
    return {"quantization": facts, "timings": _timings(compared), "notes": notes}


@dataclass(frozen=True)
class _Chosen:
    """bits: of a weight. found: what the search gave; in_float: with the head, when that is spared."""

    bits: int
    found: Found
    in_float: tuple[str, ...]


@dataclass(frozen=True)
class _Trial:
    """What the search needs. before: the float file's headline figure on `held`.

    outputs: of the float file for the samples that layers are ranked with.
    """

    prepared: tool.Prepared
    kind: Quantization
    model: Reopened
    held: Held
    before: float
    outputs: Sequence[npt.NDArray[Any]]
    deadline: float

    @staticmethod
    def begin(source: Path, scratch: Path, kind: Quantization, model: Reopened) -> _Trial:
        held = _thinned(model.held)
        prepared = tool.prepare_file(source, scratch)
        before = _headline(source, held, model)
        trial = _Trial(prepared, kind, model, held, before, (), time.monotonic() + SEARCH_SECONDS)
        outputs = _outputs(source, trial.batches(MOST_RATED))
        return _Trial(prepared, kind, model, held, before, outputs, trial.deadline)

    def batches(self, most: int) -> list[dict[str, npt.NDArray[Any]]]:
        """Samples one by one: padding would widen the range of what a layer sees."""
        rows = _even(len(self.held.targets), most)
        batches = (self.held.inputs.batch(rows[k : k + 1]) for k in range(len(rows)))
        return [{name: t.numpy() for name, t in batch.items()} for batch in batches]

    def layers(self) -> tuple[list[Layer], list[Layer]]:
        """(those to quantise, those spared from the start)."""
        every = self.prepared.layers
        total = sum(layer.bytes for layer in every)
        spared = [x for x in every if x.is_head and x.bytes < HEAD_SHARE * total]
        return [layer for layer in every if layer not in spared], spared

    def quantized(self, names: frozenset[str], bits: int, path: Path) -> Path:
        self._check_time()
        samples = self.batches(MOST_CALIBRATED)
        tool.quantize(self.prepared, self.kind, names, bits, samples, path)
        return path

    def _check_time(self) -> None:
        if time.monotonic() > self.deadline:
            raise BudgetError(
                "--quantize",
                expected=f"a search of at most {SEARCH_SECONDS:.0f} seconds",
                found="a longer one; nothing was written",
                remedy="give fewer samples by --data, allow more by --max-drop, or export in float",
            )


def _choose(trial: _Trial, allowed: float) -> _Chosen:
    """Weights of 7 bits where all layers in int8 lose no more than is allowed, else of 8 and a search."""
    layers, spared = trial.layers()
    names = frozenset(layer.name for layer in layers)
    path = trial.prepared.folder / "trial.onnx"

    def drop_with(bits: int) -> Callable[[frozenset[str]], float]:
        def drop(in_float: frozenset[str]) -> float:
            trial.quantized(names - in_float, bits, path)
            return trial.before - _headline(path, trial.held, trial.model)

        return drop

    def error(alone: frozenset[str]) -> float:
        trial.quantized(alone, tool.FULL_BITS, path)
        found = _outputs(path, trial.batches(MOST_RATED))
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
    return _Chosen(bits, found, kept)


def _refused(trial: _Trial, found: Found, allowed: float) -> GateRefusedError:
    word, before = _word(trial), trial.before
    tried = len(found.in_float)
    return GateRefusedError(
        "--quantize",
        expected=f"a drop of {word} of at most {allowed:g} on {len(trial.held.targets)} samples",
        found=f"{before:.4f} in float and {before - found.drop:.4f} in {trial.kind}, with {tried} of "
        f"{len(trial.prepared.layers)} layers left in float; nothing was written",
        remedy="allow more by --max-drop, try the other kind, or export in float",
    )


def _write(trial: _Trial, chosen: _Chosen, job: ExportJob, facts: Mapping[str, Any]) -> None:
    names = frozenset(layer.name for layer in trial.prepared.layers) - set(chosen.in_float)
    path = trial.quantized(names, chosen.bits, trial.prepared.folder / "final.onnx")
    model = ir.load(path)
    kept = {k: v for k, v in trial.prepared.metadata.items() if k != LAYOUT_KEY}
    kept[QUANTIZATION_KEY] = json.dumps(facts, sort_keys=True)
    model.metadata_props.clear()
    model.metadata_props.update(sorted(kept.items()))
    write_model(model, job.staged / layout.ONNX, job.options.external_data or None)


def _facts(trial: _Trial, chosen: _Chosen) -> dict[str, Any]:
    """What is the same whenever it is exported: also in the file and in export.json."""
    return {
        "kind": trial.kind,
        "tool": f"onnxruntime {onnxruntime.__version__}",
        "weight_bits": chosen.bits,
        "layers": len(trial.prepared.layers),
        "left_in_float": list(chosen.in_float),
        "metric": TASKS[trial.model.memory.head.task_type].metric,
        "before": trial.before,
        "after": trial.before - chosen.found.drop,
        "drop": chosen.found.drop,
        "samples": len(trial.held.targets),
        "evaluations": chosen.found.evaluations,
        "ratings": chosen.found.ratings,
    }


def _timings(compared: Compared) -> dict[str, Any]:
    return {
        "float_ms": compared.first_ms,
        "int8_ms": compared.second_ms,
        "speedup": compared.speedup,
        "speedup_low": compared.low,
        "speedup_high": compared.high,
        "rounds": compared.rounds,
    }


def _notes(
    trial: _Trial, chosen: _Chosen, allowed: float, compared: Compared, ratio: float
) -> list[str]:
    samples, drop = len(trial.held.targets), chosen.found.drop
    notes = [
        f"{_word(trial)} {trial.before:.4f} in float, {trial.before - drop:.4f} in {trial.kind} on "
        f"{samples} samples: a drop of {drop:.4f}, {allowed:g} allowed",
        f"{compared.second_ms:.2f} ms instead of {compared.first_ms:.2f} ms for one sample on one thread: "
        f"{compared.speedup:.2f} times as fast (quartiles {compared.low:.2f} to {compared.high:.2f}), "
        f"{ratio:.2f} of the size",
        f"left in float: {', '.join(chosen.in_float) or 'no layer'}",
    ]
    if compared.speedup < 1:
        notes.append("on this machine it is slower than in float: it saves space alone")
    if samples * allowed < 1 and _word(trial) == "accuracy":
        notes.append(f"one sample is {1 / samples:.4f} of the figure: give more by --data")
    convolutions = any(layer.op_type == "Conv" for layer in trial.prepared.layers)
    if trial.kind == tool.DYNAMIC and convolutions:
        notes.append("convolutions have fixed scales, as by int8-static: otherwise they are slow")
    if chosen.bits == tool.FULL_BITS:
        notes.append(
            "weights of 8 bits, since 7 lost too much: on x86 without VNNI sums may overflow, "
            "so measure there before it serves"
        )
    return notes


def _word(trial: _Trial) -> str:
    return _WORDS[TASKS[trial.model.memory.head.task_type].metric]


def _headline(path: Path, held: Held, model: Reopened) -> float:
    runner = open_onnx(path, threads=torch.get_num_threads())
    return judged(runner, held, model.memory.head)[0].accuracy


def _outputs(path: Path, batches: Sequence[Mapping[str, Any]]) -> list[npt.NDArray[Any]]:
    runner = open_onnx(path, threads=torch.get_num_threads())
    return [runner.run(batch) for batch in batches]


def _distance(expected: Sequence[npt.NDArray[Any]], found: Sequence[npt.NDArray[Any]]) -> float:
    """||found - expected|| / ||expected|| over all samples."""
    lost = sum(float(np.square(f - e, dtype=np.float64).sum()) for e, f in _pairs(expected, found))
    whole = sum(float(np.square(e, dtype=np.float64).sum()) for e in expected)
    return float(np.sqrt(lost / max(whole, np.finfo(np.float64).tiny)))


def _pairs(
    expected: Sequence[npt.NDArray[Any]], found: Sequence[npt.NDArray[Any]]
) -> Sequence[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    return list(zip(expected, found, strict=True))


def _bytes(path: Path) -> int:
    data = path.with_name(layout.ONNX_DATA)
    return path.stat().st_size + (data.stat().st_size if data.exists() else 0)


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


def _thinned(held: Held) -> Held:
    rows = _even(len(held.targets), MOST_JUDGED)
    return Held(_Rows(held.inputs, rows), held.targets[rows])
