"""`edge-pslora export --format onnx --kv-cache`: a language model for a generator, proven run by run."""

from __future__ import annotations

from dataclasses import asdict

import torch

from edge_pslora.config import GateConfig
from edge_pslora.errors import UsageError
from edge_pslora.exporters import export_files as files
from edge_pslora.exporters.cache_parity import check_cache
from edge_pslora.exporters.export import ExportJob, Facts
from edge_pslora.exporters.onnx_cache import export_with_cache, find_cache
from edge_pslora.pipeline.proving import require_equal, short_and_long
from edge_pslora.pipeline.reopening import Reopened
from edge_pslora.workspace import layout

_MODEL = "backbone.model"  # transformers' module inside a Classifier

_REMEDY = "nothing was written; export it without --kv-cache, and report the model type"


def write_with_cache(job: ExportJob, opened: Reopened) -> Facts:
    """Fills the folder with model.onnx and the tokenizer's files.

    Returns:
        kv_cache: layers, heads, head_dim. max_abs_error and max_rel_error: the largest of any check,
        torch without a cache against the file; agreement: share of tokens with the same likeliest next.

    Raises:
        UsageError: not a language model's workspace.
        ModelError: a model that keeps something else than keys and values of all tokens.
        GateRefusedError: the file is not what torch computes.
    """
    task = opened.memory.head.task_type
    if task != "language":
        raise UsageError(
            "--kv-cache",
            expected="a workspace whose task is language",
            found=f"the task {task}, whose model reads a text once",
            remedy="leave --kv-cache away",
        )
    cache = find_cache(opened.model.backbone.model, opened.example())
    written = export_with_cache(
        opened.classifier,
        _MODEL,
        cache,
        job.staged / layout.ONNX,
        metadata=opened.metadata(),
        opset=job.options.opset or 18,
        external_data=job.options.external_data or None,
    )
    threads = torch.get_num_threads()
    checks = check_cache(
        opened.classifier, written.model, short_and_long(opened.held.inputs), threads=threads
    )
    for name, parity in checks.items():
        require_equal(parity, f"--kv-cache, {name}", GateConfig(), remedy=_REMEDY)
    files.copy_side_files(job.opened, job.chosen, job.staged)
    facts = {
        "kv_cache": asdict(cache),
        "max_abs_error": max(parity.max_abs_error for parity in checks.values()),
        "max_rel_error": max(parity.max_rel_error for parity in checks.values()),
        "agreement": min(parity.agreement for parity in checks.values()),
    }
    note = (
        f"keys and values of {cache.layers} layers, {cache.heads} heads, {cache.head_dim} wide; "
        f"equal to torch within {facts['max_abs_error']:.1e}: {', '.join(checks)}"
    )
    return {**facts, "notes": [note]}
