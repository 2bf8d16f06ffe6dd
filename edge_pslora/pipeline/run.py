"""`adapt`: read, train, merge, export, prove, judge, publish. One session, start to end."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from edge_pslora.config import AdaptConfig, EligibilityConfig
from edge_pslora.data.duplicates import row_digests
from edge_pslora.data.options import ReadOptions
from edge_pslora.data.seen import nothing_seen, remembered, without_seen
from edge_pslora.data.types import Dataset, Samples
from edge_pslora.errors import GateRefusedError
from edge_pslora.exporters.run import open_onnx
from edge_pslora.models.options import ModelOptions
from edge_pslora.models.types import ModelArgument
from edge_pslora.pipeline.candidate import (
    Candidate,
    require_room,
    session_metrics,
    write_candidate,
)
from edge_pslora.pipeline.disk import (
    Published,
    check_disk,
    count_labels,
    disk_left,
    published_bytes,
    require_disk,
)
from edge_pslora.pipeline.eligibility import Watch
from edge_pslora.pipeline.footprint import Known
from edge_pslora.pipeline.imported import PastAdapter, read_past
from edge_pslora.pipeline.judging import Held, judge
from edge_pslora.pipeline.memory_files import FileCheckpoints, load_seen, open_base
from edge_pslora.pipeline.opening import (
    ModelRequest,
    Opened,
    create,
    model_needed,
    open_existing,
    removed_on_error,
)
from edge_pslora.pipeline.planning import (
    apply_plan,
    described_plan,
    keep_plan,
    kept_plan,
    make_plan,
    unplanned,
    usable_device,
)
from edge_pslora.pipeline.prefix import open_prefix, plan_prefix, room_for_rows
from edge_pslora.pipeline.preparing import (
    adapter_parameters,
    described,
    forget_weights,
    grown_anchors,
    held_anchors,
    parts,
    start_from,
    task_name,
    with_targets,
)
from edge_pslora.pipeline.publishing import finish, result_of
from edge_pslora.pipeline.reading import kept_options, read_for
from edge_pslora.pipeline.resources import Meter
from edge_pslora.pipeline.result import AdaptResult
from edge_pslora.pipeline.stages import Stages
from edge_pslora.pipeline.wear import CheckpointWear
from edge_pslora.progress import Progress, SilentProgress
from edge_pslora.tasks import TASKS
from edge_pslora.training.allocator import give_back
from edge_pslora.training.layout import channels_last
from edge_pslora.training.placing import described_device, peak_bytes, placed
from edge_pslora.training.plan import TrainingPlan
from edge_pslora.training.precision import has_bf16
from edge_pslora.training.session import SessionData, run_session
from edge_pslora.training.threads import at_most
from edge_pslora.version import VERSION
from edge_pslora.workspace import layout, refusals
from edge_pslora.workspace.generation import Generation
from edge_pslora.workspace.lock import writer_lock
from edge_pslora.workspace.update_state import require_no_trial
from edge_pslora.workspace.workspace import Workspace


def adapt(
    data: Path | str,
    *,
    model: ModelArgument | None = None,
    weights: Path | None = None,
    adapters: Sequence[Path | str] = (),
    workspace: Path | str = "edge-pslora",
    task: str | None = None,
    config: AdaptConfig | None = None,
    read: ReadOptions | None = None,
    model_options: ModelOptions | None = None,
    progress: Progress | None = None,
    eligibility: EligibilityConfig | None = None,
) -> AdaptResult:
    """Learns from `data` in one session and publishes a new generation if it is good enough.

    Args:
        data: a file or folder, see `edge_pslora.data.read.read_dataset`.
        model: a Hugging Face folder, "package.module:factory", a .pt2 file or "auto"; needed the
            first time. Or an nn.Module, or a function that returns one, which is copied, never
            changed, and needed in every session: then its weights are the workspace's.
        weights: a safetensors file for a factory's module.
        adapters: PEFT folders that count as past sessions, oldest first; only the first time.
        workspace: the folder to create or to go on with.
        task: the session's name; default: the name of `data`.
        eligibility: when the device may learn; looked at before and every second while it does.

    Returns:
        The outcome; `promoted` is False when the gate refused and the old model still serves.

    Raises:
        GateRefusedError: the exported file is not what torch computes; it lies in staging/refused.
        NotEligibleError: the device may not learn now.
        EdgePsloraError: with the exit code of its class; the workspace is then unchanged, or holds
            a run that the same call resumes.
    """
    # a network refers to itself in circles, and Python puts their collection off until a quarter of all
    # that the process holds is new: a process of many sessions would grow with each
    gc.collect()
    config = config or AdaptConfig()
    device = usable_device(config)
    stages = Stages(progress or SilentProgress())
    meter = Meter(config.budget)
    path = Path(workspace)
    watch = Watch(eligibility or EligibilityConfig(), path)
    watch.check()
    read = read or ReadOptions()
    options = model_options or ModelOptions(seed=config.train.seed)
    request = ModelRequest(model, weights, options, kept_options(read))
    if not Workspace.exists(path) and model is None:
        raise model_needed(path)
    require_no_trial(path)  # again under the lock; here before the data are read
    with stages.stage("reading"):
        dataset = read_for(Path(data), read, path)
        train, held = parts(dataset, config.train.seed)
    with writer_lock(path), at_most(_threads(path, model)), removed_on_error(path):
        require_no_trial(path)
        with stages.stage("loading the model"):
            if Workspace.exists(path):
                opened = open_existing(path, request, dataset)
            else:
                # not from the held-out samples: they are to say what it does on new ones
                opened = create(path, request, train, config)
        past = read_past([Path(a) for a in adapters], opened.model)
        name = task_name(task, Path(data))
        twice = read.keep_duplicates
        run = _Run(
            *(opened, dataset, train, held, config, name, stages, meter, watch, device, twice, past)
        )
        digest = _run_digest(run, opened.workspace)
        if (finished := opened.workspace.recover(digest)) is not None:
            return result_of(finished)
        return _session(run, digest)


def _threads(workspace: Path, model: ModelArgument | None) -> int | None:
    """One for the small built-in networks; any number for others."""
    if Workspace.exists(workspace):
        kind = Workspace.open(workspace).header.source.get("kind")
        return 1 if kind == "auto" else None
    return 1 if model == "auto" else None


PROBE = 8  # samples that are computed on the CPU too, before a session elsewhere


@dataclass(frozen=True)
class _Run:
    opened: Opened
    dataset: Dataset
    train: Samples
    held: Samples
    config: AdaptConfig
    task: str
    stages: Stages
    meter: Meter
    watch: Watch
    device: torch.device
    keep_duplicates: bool
    past: tuple[PastAdapter, ...] = ()


def _session(run: _Run, digest: str) -> AdaptResult:
    workspace, model = run.opened.workspace, run.opened.model
    stage = run.stages.stage
    parent = workspace.current()
    known = nothing_seen() if parent is None else load_seen(parent)
    dataset, train, held = run.dataset, run.train, run.held
    if len(known) and not run.keep_duplicates:
        dataset = without_seen(dataset, known)
        train, held = parts(dataset, run.config.train.seed)
    memory, anchors, targets = start_from(
        parent, model, run.config, train, run.past, workspace.base
    )
    config = with_targets(run.config, TASKS[memory.head.task_type], targets)
    run.stages.progress.say(described(model, targets, config))
    with stage("encoding"):
        data = SessionData(model.encoder.encode(train), train.targets)
        holdout = Held(model.encoder.encode(held), held.targets)
    # before the training, not after it
    floats = sum(parameter.numel() for parameter in model.backbone.model.parameters())
    require_room(workspace.path, 4 * floats, config)
    first = parent is None
    kept = kept_plan(workspace.unfinished(digest))
    plan = kept or _planned(Known(model, memory, targets, data, config, first), run.device)
    published = Published(model, targets, count_labels(memory, data), config)
    require_disk(workspace, published)
    room = None if kept else room_for_rows(workspace.path, disk_left(workspace, published))
    prefix = plan_prefix(model, memory, data.inputs, config, plan, room)
    give_back()  # what was tried is not to lie below what comes
    plan = replace(plan, cut=prefix.cut is not None, prefix=prefix.form)
    # the staging area goes on with a run only where its parent is still the same
    staged = workspace.begin(digest)
    keep_plan(staged, plan)
    apply_plan(plan)
    for line in (described_plan(plan, config), prefix.note):
        if line:
            run.stages.progress.say(line)
    checkpoints = FileCheckpoints(staged.scratch / "training.safetensors")
    wear = CheckpointWear(checkpoints.path, published_bytes(published))
    with (
        open_base(workspace.base, model) as base_weights,
        open_prefix(prefix, data.inputs, staged.scratch, digest) as rows,
        placed(
            model.backbone,
            run.device,
            data.inputs.batch(np.arange(min(PROBE, len(data.inputs)), dtype=np.int64)),
            stays=not TASKS[memory.head.task_type].has_head,
        ),
        channels_last(model.backbone, plan.channels_last),
    ):
        result = run_session(
            model,
            base_weights,
            memory,
            data,
            config,
            plan=plan,
            lower=prefix.lower,
            prefix=rows,
            progress=run.stages.progress,
            stop=run.meter.stop_reason,
            store=checkpoints,
            check=lambda: run.watch.check("while it learned"),
            due=wear.due,
        )
    grown = grown_anchors(anchors, holdout, result.memory.sessions, config)
    notes = [p.note(session) for session, p in enumerate(run.past, start=1)]
    notes += [prefix.note] if prefix.note else []
    imported = tuple(p.name for p in run.past)
    candidate = Candidate(
        staged.number,
        run.task,
        result,
        grown,
        remembered(known, row_digests(dataset.train)),
        data,
        config,
        (*model.notes, *notes),
        imported,
    )
    with stage("exporting"):
        try:
            exported = write_candidate(staged.folder, workspace, model, candidate)
        except GateRefusedError as problem:
            serving = 0 if parent is None else parent.number
            created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            facts = {"samples": len(data.targets)}
            record = refusals.record_of(
                facts,
                task=run.task,
                created=created,
                parent=serving or None,
                reason=str(problem),
            )
            workspace.refuse(staged.folder, record)
            problem.figures |= {"generation": serving, "promoted": False, "reason": str(problem)}
            raise
    for note in exported.notes:
        run.stages.progress.say(note)
    candidate = replace(candidate, notes=(*candidate.notes, *exported.notes))
    run.meter.check_memory("export")
    forget_weights(model)  # from here on the file answers
    gc.collect()
    give_back()
    check_disk(workspace.path, config)
    with stage("checking"):
        most = plan.feature_batch
        new = (open_onnx(staged.folder / layout.ONNX, most_rows=most), result.memory.head)
        old = None
        if parent is not None:
            old = (open_onnx(parent.file(layout.ONNX), most_rows=most), memory.head)
        earlier = held_anchors(model, anchors)
        session = Held(data.inputs, data.targets)
        sizes = {layer.name: layer.relative_norm for layer in result.layers}
        decision, figures = judge(
            config.gate, new, old, holdout, earlier, session, result.unseen, sizes
        )
    run.meter.check_memory("the checks")
    tasks, by_session = _task_names(parent, run.task, imported), figures.pop("by_session")
    metrics = session_metrics(candidate, dataset, len(holdout.targets), figures, exported)
    metrics["tasks"] = tasks
    metrics["plan"] = plan.to_dict()
    if (held_there := peak_bytes(run.device)) is not None:
        metrics["device_peak_bytes"] = held_there
    metrics["adapter_parameters"] = adapter_parameters(targets, config)
    if run.past:
        metrics["imported"] = [p.facts() for p in run.past]
    by_task = {tasks[number - 1]: value for number, value in by_session}
    metrics["accuracy_by_task"] = by_task | {tasks[-1]: figures["accuracy_after"]}
    metrics["written_bytes"] = run.meter.written()
    metrics["wall_seconds"] = round(run.meter.seconds(), 3)
    if result.log.first_step is not None:
        metrics["first_step_seconds"] = round(result.log.first_step - run.meter.start, 3)
    metrics["seconds"] = {
        name: round(value, 3) for name, value in (run.stages.seconds | result.seconds).items()
    }
    created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return finish(workspace, model, staged, candidate, dataset, decision, metrics, created)


def _planned(known: Known, device: torch.device) -> TrainingPlan:
    if known.config.budget.ram_bytes is None:
        return unplanned(known.model, known.data.inputs, known.config, device)
    return make_plan(known)[0]


def _task_names(parent: Generation | None, task: str, imported: tuple[str, ...]) -> list[str]:
    """The sessions so far; a name that comes again gets its session's number."""
    names = list(imported) if parent is None else list(parent.manifest.metrics["tasks"])
    return [*names, task if task not in names else f"{task} ({len(names) + 1})"]


def _run_digest(run: _Run, workspace: Workspace) -> str:
    """Names everything the result depends on: only the same run is resumed."""
    content = {
        "version": VERSION,
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "bf16": has_bf16(run.device),
        "device": described_device(run.device),
        "keep_duplicates": run.keep_duplicates,
        "data": run.dataset.digest,
        "base": workspace.header.base_digest,
        "config": run.config.to_dict(),
        "task": run.task,
        "adapters": [p.digest for p in run.past],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
