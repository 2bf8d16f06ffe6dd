"""`adapt --plan`: how a session would be computed and what it would take. Nothing is trained or changed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from edge_pslora.config import AdaptConfig
from edge_pslora.data.options import ReadOptions
from edge_pslora.data.seen import without_seen
from edge_pslora.data.types import Dataset, Samples
from edge_pslora.models.options import ModelOptions
from edge_pslora.models.types import ModelArgument
from edge_pslora.pipeline.disk import (
    Published,
    count_labels,
    disk_left,
    kept_bytes,
    require_disk,
    session_bytes,
)
from edge_pslora.pipeline.footprint import Known
from edge_pslora.pipeline.memory_files import load_seen
from edge_pslora.pipeline.opening import (
    ModelRequest,
    Opened,
    create,
    model_needed,
    open_existing,
)
from edge_pslora.pipeline.planning import (
    described_plan,
    make_plan,
    unplanned,
    usable_device,
)
from edge_pslora.pipeline.prefix import plan_prefix, room_for_rows, rows_bytes
from edge_pslora.pipeline.preparing import parts, start_from, with_targets
from edge_pslora.pipeline.reading import kept_options, read_for
from edge_pslora.tasks import TASKS
from edge_pslora.training.placing import CPU
from edge_pslora.training.session import SessionData
from edge_pslora.workspace.workspace import Workspace


def plan_session(
    data: Path | str,
    *,
    model: ModelArgument | None = None,
    weights: Path | None = None,
    workspace: Path | str = "edge-pslora",
    config: AdaptConfig | None = None,
    read: ReadOptions | None = None,
    model_options: ModelOptions | None = None,
) -> dict[str, Any]:
    """As `adapt`, up to the first step: the plan, its line, stage -> peak bytes (none are predicted for
    another device than the CPU), and bytes on disk.

    Raises:
        BudgetError: no plan keeps --ram-budget or --disk-budget.
        EdgePsloraError: as `adapt`.
    """
    config = config or AdaptConfig()
    device = usable_device(config)
    read = read or ReadOptions()
    path = Path(workspace)
    options = model_options or ModelOptions(seed=config.train.seed)
    request = ModelRequest(model, weights, options, kept_options(read))
    if not Workspace.exists(path) and model is None:
        raise model_needed(path)
    dataset = read_for(Path(data), read, path)
    train, held = parts(dataset, config.train.seed)
    with _opened(path, request, dataset, train, config) as opened:
        loaded = opened.model
        parent = opened.workspace.current()
        if parent is not None and not read.keep_duplicates:
            train, held = parts(without_seen(dataset, load_seen(parent)), config.train.seed)
        memory, _, targets = start_from(parent, loaded, config, train, (), opened.workspace.base)
        config = with_targets(config, TASKS[memory.head.task_type], targets)
        samples = SessionData(loaded.encoder.encode(train), train.targets)
        encoded = loaded.encoder.encode(held)  # `adapt` holds them too
        if device == CPU:
            known = Known(loaded, memory, targets, samples, config, parent is None)
            plan, peaks = make_plan(known)
        else:
            plan, peaks = unplanned(loaded, samples.inputs, config, device), {}
        published = Published(loaded, targets, count_labels(memory, samples), config)
        require_disk(opened.workspace, published)
        room = room_for_rows(path, disk_left(opened.workspace, published))
        prefix = plan_prefix(loaded, memory, samples.inputs, config, plan, room)
        plan = replace(plan, cut=prefix.cut is not None, prefix=prefix.form)
        return {
            "plan": plan.to_dict(),
            "line": described_plan(plan, config),
            "samples": len(train),
            "holdout_samples": len(encoded),
            "peaks": peaks,
            "notes": [prefix.note] if prefix.note else [],
            "disk_bytes": kept_bytes(opened.workspace)
            + session_bytes(published)
            + rows_bytes(prefix, samples.inputs),
        }


@contextmanager
def _opened(
    path: Path, request: ModelRequest, dataset: Dataset, train: Samples, config: AdaptConfig
) -> Iterator[Opened]:
    """The workspace as it is, or a new one somewhere else, for as long as the block runs."""
    if Workspace.exists(path):
        yield open_existing(path, request, dataset)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield create(Path(folder), request, train, config)
