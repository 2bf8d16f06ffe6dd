"""The proof of an exported file: what it computes in onnxruntime against what torch computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edge_pslora.config import GateConfig
from edge_pslora.errors import GateRefusedError, ModelError
from edge_pslora.exporters.parity import ROUNDING, Parity, check_parity
from edge_pslora.models.types import EncodedInputs
from edge_pslora.pipeline.judging import BATCH
from edge_pslora.tasks import Task
from edge_pslora.training.batches import sorted_batches
from edge_pslora.training.classifier import Classifier

PARITY_BATCHES = (1, 7)
MOST_PROVEN = 512  # samples that a traced file is tried on
NOT_WRITTEN = "nothing was written; report the model's architecture"  # of exports
KEPT = "the old model was kept, forced or not; report the model's architecture"

Axes = Mapping[str, tuple[str, ...]]
Batch = dict[str, torch.Tensor]


def prove_export(
    classifier: Classifier,
    path: Path,
    inputs: EncodedInputs,
    config: GateConfig,
    task: Task,
    *,
    axes: Axes | None = None,
    unit: float = 1.0,
    traced: bool = False,
) -> Parity:
    """torch against onnxruntime on this generation's own data: `run_both`, held to the limits.

    Args:
        unit: of an output; what the absolute limit is counted in.

    Raises:
        GateRefusedError: they differ by more than the configured error, or in a decision that is no
            tie, or the file does not run at one of the sizes. `--force` does not help.
    """
    try:
        parity = run_both(classifier, path, inputs, task, axes=axes, traced=traced)
    except ModelError as problem:
        raise GateRefusedError(
            str(path),
            expected="a file that runs at every batch size and length",
            found=problem.found,
            remedy=KEPT,
        ) from problem
    require_equal(parity, str(path), config, unit)
    return parity


def run_both(
    classifier: Classifier,
    path: Path,
    inputs: EncodedInputs,
    task: Task,
    *,
    axes: Axes | None = None,
    traced: bool = False,
) -> Parity:
    """What torch and the file make of samples at two batch sizes and lengths.

    Args:
        inputs: those of the session: they are many, and a fault of the graph shows on any. (Held-out ones
            beside them refused recordings under ill-conditioned heads, whose logits cancel.)
        axes: the model's free axes, see LoadedModel: where all samples have one length and the model
            takes any, one of them is shortened.
        traced: the file holds what one run of the model did, so that any other sample could take a way
            that is not in it: up to MOST_PROVEN are tried, in batches and one by one.

    Raises:
        ModelError: the file does not run.
    """
    free = [name for name, names in (axes or {}).items() if len(names) > 1]
    batches = short_and_long(inputs, free)
    if traced:
        batches += many_batches(inputs)
    threads = torch.get_num_threads()
    parity = check_parity(
        classifier, path, batches, threads=threads, predict=task.predict, margin=task.margin
    )
    lengths = tuple(batch[free[0]].shape[1] for batch in batches) if free else ()
    return replace(parity, lengths=lengths)


def require_equal(
    parity: Parity, where: str, config: GateConfig, unit: float = 1.0, remedy: str = KEPT
) -> None:
    """Raises GateRefusedError: a difference beyond the limits of the dtype, or another decision."""
    absolute, relative = config.max_onnx_abs_error * unit, config.max_onnx_rel_error
    if parity.dtype in ("float16", "bfloat16"):
        absolute, relative = ROUNDING[parity.dtype] * unit, ROUNDING[parity.dtype]
    if not parity.within(absolute, relative):
        raise GateRefusedError(
            where,
            expected=f"outputs equal to torch's within {absolute:.1e}, or {relative:.1e} of the largest",
            found=f"a difference of {parity.max_abs_error:.1e}, {parity.max_rel_error:.1e} of it",
            remedy=remedy,
            figures=parity_figures(parity),
        )
    if parity.differing:
        raise GateRefusedError(
            where,
            expected="torch's predictions wherever its outputs are not level",
            found=f"{parity.differing} others ({parity.agreement:.2%} agree, {parity.ties} are level)",
            remedy=remedy,
            figures=parity_figures(parity),
        )


def parity_figures(parity: Parity) -> dict[str, Any]:
    """For the manifest and `--json`: JSON values, so an error that is not finite is None."""
    errors = {"abs": parity.max_abs_error, "rel": parity.max_rel_error}
    return {
        **{f"onnx_max_{n}_error": e if np.isfinite(e) else None for n, e in errors.items()},
        "onnx_agreement": parity.agreement,
        "onnx_ties": parity.ties,
        "onnx_dtype": parity.dtype,
        "onnx_batch_sizes": list(parity.batch_sizes),
        "onnx_lengths": list(parity.lengths),
    }


def short_and_long(inputs: EncodedInputs, free: Sequence[str] = ()) -> list[Batch]:
    """The shortest and the longest samples: other shapes than the example that was traced.

    free: inputs whose second axis is free.
    """
    order = np.argsort(inputs.lengths(), kind="stable").astype(np.int64)
    few, many = (min(size, len(order)) for size in PARITY_BATCHES)
    short, long = inputs.batch(order[:few]), inputs.batch(order[-many:])
    if free and short[free[0]].shape[1] == long[free[0]].shape[1] > 2:
        short |= {name: short[name][:, :-1] for name in free}
    return [short, long]


def many_batches(inputs: EncodedInputs) -> list[Batch]:
    """Samples spread evenly over all, in batches and one by one."""
    count = min(len(inputs), MOST_PROVEN)
    spread = np.linspace(0, len(inputs) - 1, count).astype(np.int64)
    lengths = inputs.lengths()[spread]
    together = [spread[part] for part in sorted_batches(lengths, BATCH)]
    alone = [spread[i : i + 1] for i in range(0, count, max(1, count // BATCH))]
    return [inputs.batch(part) for part in (*together, *alone)]
