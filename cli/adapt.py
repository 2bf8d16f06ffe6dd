"""`edge-pslora adapt`: one session of learning."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import typer

from edge_pslora.cli import data_options as d
from edge_pslora.cli import engine_options as e
from edge_pslora.cli import model_options as m
from edge_pslora.cli import options as o
from edge_pslora.cli.config_file import Config
from edge_pslora.cli.loading import heavy_imports
from edge_pslora.cli.output import OTHER_FIGURES, columns, fraction, print_result
from edge_pslora.cli.quiet import working
from edge_pslora.cli.settings import adapt_config, eligibility, per_channel, without_samples
from edge_pslora.errors import GateRefusedError
from edge_pslora.units import format_duration, format_size


def adapt(
    data: d.DataArgument,
    model: m.Model = None,
    workspace: m.Workspace = m.DEFAULT_WORKSPACE,
    weights: m.Weights = None,
    adapter: m.AdapterFolders = None,
    target: m.Target = None,
    head_module: m.HeadModule = None,
    max_length: m.MaxLength = None,
    image_size: m.ImageSize = None,
    clip_seconds: m.ClipSeconds = None,
    image_mean: m.ImageMean = None,
    image_std: m.ImageStd = None,
    task: d.Task = None,
    label_column: d.LabelColumn = None,
    text_column: d.TextColumn = None,
    feature_columns: d.FeatureColumns = None,
    ignore_columns: d.IgnoreColumns = None,
    missing: d.Missing = None,
    task_type: d.TaskTypeOption = None,
    keep_duplicates: d.KeepDuplicates = False,
    no_keep_samples: d.NoKeepSamples = False,
    window: d.Window = None,
    hop: d.Hop = None,
    rate: d.Rate = None,
    time_column: d.TimeColumn = None,
    time_unit: d.TimeUnit = None,
    group_column: d.GroupColumn = None,
    history_budget: o.HistoryBudget = None,
    anchor_budget: o.AnchorBudget = None,
    head_budget: o.HeadBudget = None,
    ram_budget: e.RamBudget = None,
    time_budget: e.TimeBudget = None,
    disk_budget: e.DiskBudget = None,
    plan: e.PlanOnly = False,
    only_on_power: e.OnlyOnPower = False,
    min_battery: e.MinBattery = None,
    max_temperature: e.MaxTemperature = None,
    max_load: e.MaxLoad = None,
    min_free: e.MinFree = None,
    preset: o.Preset = "default",
    rank: o.Rank = None,
    alpha: o.Alpha = None,
    epochs: o.Epochs = None,
    batch_size: o.BatchSize = None,
    learning_rate: o.LearningRate = None,
    head: o.Head = None,
    ridge: o.Ridge = None,
    class_balance: o.ClassBalanceOption = None,
    compete: o.CompeteOption = None,
    label_template: o.LabelTemplate = None,
    train_norms: o.TrainNorms = False,
    early_stop: o.EarlyStop = False,
    label_smoothing: o.LabelSmoothing = None,
    balanced_sampling: o.BalancedSampling = False,
    seed: o.Seed = None,
    merge: o.Merge = None,
    factors: o.Factors = None,
    stability_weight: o.StabilityWeight = None,
    stability_temperature: o.StabilityTemperature = None,
    stability_reading: o.StabilityReadingOption = None,
    no_direction: o.NoDirection = False,
    no_magnitude: o.NoMagnitude = False,
    stability_every: o.StabilityEvery = None,
    stability_stride: o.StabilityStride = None,
    stability_features: o.StabilityFeatures = None,
    stability_pull: o.StabilityPull = None,
    stability_cache: o.StabilityCache = None,
    adapt_depth: o.AdaptDepth = None,
    device: e.Device = None,
    precision: e.PrecisionOption = None,
    micro_batch: e.MicroBatch = None,
    checkpointing: e.Checkpointing = None,
    prefix_cache: e.PrefixCacheOption = None,
    max_forgetting: o.MaxForgetting = None,
    force: o.Force = False,
    threads: e.Threads = None,
    nice: e.Nice = None,
    config: Config = None,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Learn from DATA, check the result, and serve it if it is good enough.

    Exit codes: 0 promoted, 1 failed and nothing changed, 2 wrong use,
    3 refused (the old model still serves), 4 bad input, 5 workspace locked,
    6 budget cannot be met.
    """
    settings = adapt_config(
        preset,
        {
            "rank": rank,
            "alpha": alpha,
            "target": tuple(target) if target else None,
            "epochs": epochs,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "max_length": max_length,
            "train_norms": train_norms or None,
            "early_stop": early_stop or None,
            "label_smoothing": label_smoothing,
            "balanced_sampling": balanced_sampling or None,
            "seed": seed,
            "head": head,
            "ridge": ridge,
            "class_balance": class_balance,
            "compete": compete,
            "label_template": label_template,
            "merge": merge,
            "factors": factors,
            "stability_weight": stability_weight,
            "stability_temperature": stability_temperature,
            "stability_reading": stability_reading,
            "direction": False if no_direction else None,
            "magnitude": False if no_magnitude else None,
            "stability_every": stability_every,
            "stability_stride": stability_stride,
            "stability_features": stability_features,
            "stability_pull": stability_pull,
            "stability_cache": stability_cache,
            "adapt_depth": adapt_depth,
            "device": device,
            "precision": precision,
            "micro_batch": micro_batch,
            "checkpointing": checkpointing,
            "prefix_cache": prefix_cache,
            "history_budget": history_budget,
            "anchor_budget": without_samples(anchor_budget) if no_keep_samples else anchor_budget,
            "head_budget": head_budget,
            "ram_budget": ram_budget,
            "time_budget": time_budget,
            "disk_budget": disk_budget,
            "max_forgetting": max_forgetting,
            "force": force or None,
        },
    )
    read = d.read_options(
        label_column=label_column,
        text_column=text_column,
        feature_columns=feature_columns,
        ignore_columns=ignore_columns,
        missing=missing,
        window=window,
        hop=hop,
        rate=rate,
        time_column=time_column,
        time_unit=time_unit,
        group_column=group_column,
        task_type=task_type,
        keep_duplicates=keep_duplicates,
        keep_samples=not no_keep_samples,
    )
    may_learn = eligibility(
        only_on_power=only_on_power,
        min_battery=min_battery,
        max_temperature=max_temperature,
        max_load=max_load,
        min_free=min_free,
    )
    mean = per_channel(image_mean, "--image-mean")
    std = per_channel(image_std, "--image-std")
    with working(quiet=quiet, debug=debug) as progress:
        # Torch is imported here and not above: --help has to start fast.
        with heavy_imports():
            from edge_pslora.models.options import ModelOptions
            from edge_pslora.pipeline import adapt as run_session

        if nice is not None and hasattr(os, "nice"):
            os.nice(max(0, nice - os.nice(0)))
        if threads is not None:
            import torch

            torch.set_num_threads(threads)
        options = ModelOptions(
            max_length=settings.train.max_length,
            image_size=image_size,
            clip_seconds=clip_seconds,
            image_mean=mean,
            image_std=std,
            head_module=head_module,
            seed=settings.train.seed,
        )
        if plan:
            from edge_pslora.pipeline import plan_session

            planned = plan_session(
                data,
                model=model,
                weights=weights,
                workspace=workspace,
                config=settings,
                read=read,
                model_options=options,
            )
        else:
            result = run_session(
                data,
                model=model,
                weights=weights,
                adapters=tuple(adapter or ()),
                workspace=workspace,
                task=task,
                config=settings,
                read=read,
                model_options=options,
                progress=progress,
                eligibility=may_learn,
            )
    if plan:  # what is printed above is held back
        show_plan(planned, as_json=as_json)
        return
    facts = result.to_dict()
    print_result(facts, describe(facts, workspace), as_json=as_json)
    if not facts["promoted"]:
        raise typer.Exit(GateRefusedError.exit_code)


def show_plan(facts: dict[str, Any], *, as_json: bool) -> None:
    """What `--plan` prints."""
    peaks = columns([(stage, format_size(size)) for stage, size in facts["peaks"].items()])
    disk = f"disk: at most {format_size(facts['disk_bytes'])} for the workspace"
    heading = ["memory at its largest"] if peaks else []
    print_result(facts, [facts["line"], *heading, *peaks, disk], as_json=as_json)


def describe(facts: dict[str, Any], workspace: Path) -> list[str]:
    """The result for people."""
    if facts["promoted"]:
        headline = f"Generation {facts['generation']} of {workspace} is now served."
    else:
        headline = "Refused: the old model still serves."
    set_aside = facts.get("rejected", 0)
    rows = [
        ("why", facts["reason"]),
        ("task", facts["task"]),
        ("samples", f"{facts['samples']}{f', {set_aside} rows set aside' if set_aside else ''}"),
        (facts.get("metric", "accuracy"), f"{_before_after(facts)} on held-out samples"),
        *((name, _other_figure(facts, name)) for name in OTHER_FIGURES if f"{name}_after" in facts),
    ]
    if facts["retention"] is not None:
        rows.append(("retention", f"{fraction(facts['retention'])} of what was known"))
    rows += [
        ("history", format_size(facts["history_bytes"])),
        (
            "run",
            f"{facts['steps']} steps, {format_duration(facts['wall_seconds'])}, "
            f"{format_size(facts['peak_rss_bytes'])} of memory",
        ),
    ]
    if facts.get("plan"):
        rows.append(("plan", _plan(facts["plan"])))
    if facts.get("stop_reason"):
        rows.append(("stopped", facts["stop_reason"]))
    if facts["onnx_max_abs_error"] is not None:
        rows.append(("onnx = torch", f"to {facts['onnx_max_abs_error']:.1e} in every logit"))
    files = columns([(name, path) for name, path in facts["files"].items()])
    notes = [f"note: {note}" for note in facts.get("notes", ())]
    return [headline, *columns(rows), *notes, *(["files", *files] if files else [])]


def _plan(plan: dict[str, Any]) -> str:
    """How it was computed, in words."""
    parts = [plan["precision"], f"{plan['micro_batch']} samples at once"]
    parts += [f"on {plan['device']}"] if plan.get("device", "cpu") != "cpu" else []
    parts += ["activations computed twice"] if plan["checkpointing"] else []
    parts += [f"lower layers once, kept {plan['prefix']}"] if plan["prefix"] != "off" else []
    parts += [f"{format_size(plan['peak_bytes'])} of memory planned"] if plan["peak_bytes"] else []
    return ", ".join(parts)


def _other_figure(facts: dict[str, Any], name: str) -> str:
    before, after = facts.get(f"{name}_before"), facts[f"{name}_after"]
    return f"{after:.4g}" if before is None else f"{before:.4g} before, {after:.4g} after"


def _before_after(facts: dict[str, Any]) -> str:
    after = fraction(facts["accuracy_after"])
    if facts["accuracy_before"] is None:
        return after
    return f"{fraction(facts['accuracy_before'])} before, {after} after,"
