"""Exporting in int8: quantised, judged on held-out samples, timed, and refused when it costs too much.

The float file is the published one. Every figure of the record comes from files that onnxruntime ran here.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnx_ir.passes.common as passes
import onnxruntime

from edge_pslora.errors import EdgePsloraError, UsageError
from edge_pslora.exporters import export_files as files
from edge_pslora.exporters import onnx_quantize as tool
from edge_pslora.exporters.export import ExportJob, Facts
from edge_pslora.exporters.onnx_file import LAYOUT_KEY
from edge_pslora.exporters.onnx_latency import Compared, side_by_side
from edge_pslora.exporters.onnx_write import write_model
from edge_pslora.pipeline.export_remade import remake
from edge_pslora.pipeline.quantized_trial import Chosen, Trial, choose, word
from edge_pslora.pipeline.reopening import Reopened
from edge_pslora.tasks import TASKS
from edge_pslora.workspace import durable, layout

QUANTIZATION_KEY = "pslora.quantization"
MOST_TIMED = 20  # samples
_SAME = 1e-9
_COPIES = 8  # of the float file, for all that lies in the scratch folder


def write_quantized(job: ExportJob, model: Reopened) -> Facts:
    """Fills the staged folder with model.onnx in int8, and what goes with it.

    Raises:
        GateRefusedError: whatever is left in float, the headline figure drops by more than allowed.
        ModelError: nothing can be quantised.
        BudgetError: the search took longer than quantized_trial.SEARCH_SECONDS.
    """
    kind = job.options.quantize
    if kind is None:
        raise UsageError(
            "--quantize",
            expected="int8 or int8-static",
            found="an ONNX export in float",
            remedy="use the writer for it",
        )
    durable.require_free_space(job.staged, _COPIES * job.chosen.bytes)
    with tempfile.TemporaryDirectory(dir=job.staged, prefix=".quantizing-") as name:
        scratch = Path(name)
        source, said = _float_file(job, model, scratch)
        trial = Trial.begin(source, scratch, kind, model)
        chosen = choose(trial, job.options.max_drop)
        facts = _facts(trial, chosen)
        _write(trial, chosen, job, facts)
        written = job.staged / layout.ONNX
        _require_judged(trial.headline(written), facts["after"])
        compared = side_by_side(source, written, trial.samples[:MOST_TIMED])
        ratio = _bytes(written) / _bytes(source)
    files.copy_side_files(job.opened, job.chosen, job.staged)
    facts["size_ratio"] = ratio
    notes = [*_notes(trial, chosen, job.options.max_drop, compared, ratio), *said]
    return {"quantization": facts, "timings": _timings(compared), "notes": notes}


def _float_file(job: ExportJob, model: Reopened, scratch: Path) -> tuple[Path, tuple[str, ...]]:
    """The published file, or with --opset the same model exported again and proven; and notes on it."""
    source = scratch / layout.ONNX
    if job.options.opset is not None:
        axes = model.model.dynamic_axes
        written, _ = remake(model, source, job.options.opset, axes)
        return source, written.notes
    for part in (layout.ONNX, layout.ONNX_DATA):
        if part == layout.ONNX or job.chosen.has(part):
            files.copy_published(job.chosen, part, scratch / part)
    return source, ()


def _write(trial: Trial, chosen: Chosen, job: ExportJob, facts: Mapping[str, Any]) -> None:
    names = frozenset(layer.name for layer in trial.prepared.layers) - set(chosen.in_float)
    path = trial.quantized(names, chosen.bits, trial.prepared.folder / "final.onnx")
    model = ir.load(path)
    kept = {k: v for k, v in trial.prepared.metadata.items() if k != LAYOUT_KEY}
    kept[QUANTIZATION_KEY] = json.dumps(facts, sort_keys=True)
    passes.ClearMetadataAndDocStringPass()(model)  # which rule rewrote a node
    model.metadata_props.clear()
    model.metadata_props.update(sorted(kept.items()))
    write_model(model, job.staged / layout.ONNX, job.options.external_data or None)


def _require_judged(written: float, judged: float) -> None:
    """What was judged is the quantiser's file; what is shipped was written from it."""
    if abs(written - judged) > _SAME:
        raise EdgePsloraError(
            "--quantize",
            expected=f"a file that reaches what was judged, {judged:.6f}",
            found=f"{written:.6f}; nothing was written",
            remedy="export it in float, and report this model's architecture",
        )


def _facts(trial: Trial, chosen: Chosen) -> dict[str, Any]:
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
        "evaluations": chosen.evaluations,
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
    trial: Trial, chosen: Chosen, allowed: float, compared: Compared, ratio: float
) -> list[str]:
    samples, drop = len(trial.held.targets), chosen.found.drop
    notes = [
        f"{word(trial)} {trial.before:.4f} in float, {trial.before - drop:.4f} in {trial.kind} on "
        f"{samples} samples: a drop of {drop:.4f}, {allowed:g} allowed",
        f"{compared.second_ms:.3g} ms instead of {compared.first_ms:.3g} ms for one sample on one thread: "
        f"{compared.speedup:.2f} times as fast (quartiles {compared.low:.2f} to {compared.high:.2f}), "
        f"{ratio:.2f} of the size",
        f"left in float: {', '.join(chosen.in_float) or 'no layer'}",
    ]
    if compared.speedup < 1:
        left = (
            "it saves space alone"
            if ratio < 1
            else "and it is no smaller: the float file is better"
        )
        notes.append(f"on this machine it is slower than in float: {left}")
    if 0 < samples * allowed < 1 and word(trial) == "accuracy":
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


def _bytes(path: Path) -> int:
    data = path.with_name(layout.ONNX_DATA)
    return path.stat().st_size + (data.stat().st_size if data.exists() else 0)
