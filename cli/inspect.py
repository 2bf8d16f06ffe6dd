"""`edge-pslora inspect`: what a model or data is understood as, before anything is trained."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from edge_pslora.cli import data_options as d
from edge_pslora.cli import model_options as m
from edge_pslora.cli import options as o
from edge_pslora.cli.output import columns, print_result
from edge_pslora.cli.quiet import working
from edge_pslora.units import format_size

Source = Annotated[
    str,
    typer.Argument(
        metavar="MODEL|DATA",
        help="What --model takes (a Hugging Face folder, package.module:factory, a .pt2 file, auto), a "
        ".safetensors file, or DATA as adapt takes it.",
    ),
]
MOST = 8  # names that fit into a line


def inspect(
    source: Source,
    weights: m.Weights = None,
    target: m.Target = None,
    rank: o.Rank = None,
    max_length: m.MaxLength = None,
    image_size: m.ImageSize = None,
    label_column: d.LabelColumn = None,
    text_column: d.TextColumn = None,
    feature_columns: d.FeatureColumns = None,
    ignore_columns: d.IgnoreColumns = None,
    missing: d.Missing = None,
    window: d.Window = None,
    hop: d.Hop = None,
    rate: d.Rate = None,
    time_column: d.TimeColumn = None,
    time_unit: d.TimeUnit = None,
    group_column: d.GroupColumn = None,
    task_type: d.TaskTypeOption = None,
    as_json: o.AsJson = False,
    debug: o.Debug = False,
) -> None:
    """Show what MODEL or DATA is understood as: no training, nothing written.

    Exit codes: 0 it can be used, 2 wrong use, 4 bad input.
    """
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
    )
    with working(quiet=True, debug=debug):
        from edge_pslora.config import LoraConfig
        from edge_pslora.inspection.source import inspect_source
        from edge_pslora.models.options import ModelOptions

        lora = LoraConfig() if rank is None else LoraConfig(rank=rank)
        defaults = ModelOptions()
        facts = inspect_source(
            source,
            read=read,
            model_options=ModelOptions(
                max_length=defaults.max_length if max_length is None else max_length,
                image_size=image_size,
            ),
            weights=weights,
            targets=tuple(target) if target else lora.target_modules,
            rank=lora.rank,
        ).to_dict()
    describe = _describe_data if facts["what"] == "data" else _describe_model
    print_result(facts, describe(facts), as_json=as_json)


def _describe_data(facts: Mapping[str, Any]) -> list[str]:
    about = "" if facts["complete"] else "about "
    rows = [
        ("format", f"{facts['format']}, {facts['modality']}"),
        ("task", facts["task_type"]),
    ]
    for name, part in facts["parts"].items():
        rows.append((name, f"{about}{_whole(facts, part['rows'])} rows{_classes(part['classes'])}"))
    if facts["label"] is not None:
        rows.append(("label", facts["label"]))
    if facts["text"] is not None:
        rows.append(("text", facts["text"]))
    if facts["target_range"] is not None:
        least, mean, greatest = facts["target_range"]
        rows.append(("values", f"{least:.4g} to {greatest:.4g}, mean {mean:.4g}"))
    if facts["features"]:
        rows.append(("columns", _some(facts["features"])))
    if len(facts["shape"]) > 1:
        rows.append(("shape", " x ".join(map(str, facts["shape"]))))
    if facts["missing"]:
        total = sum(facts["missing"].values())
        rows.append(("missing", f"{total} cells, in {_some(list(facts['missing']))}"))
    if facts["constant"]:
        rows.append(("constant", _some(facts["constant"])))
    rows.append(("bad rows", str(facts["rejected"])))
    rows += [("", f"{where}: {reason}") for where, reason in facts["rejected_first"]]
    if facts["sample"] is not None:
        rows += _describe_sample(facts["sample"])
    if not facts["complete"]:
        read, size = format_size(facts["bytes_read"]), format_size(facts["bytes"])
        rows.append(("read", f"the first {read} of {size}; classes and bad rows are of these"))
    rows.append(("fits", "--model " + ", or ".join(facts["fits"])))
    notes = [f"note: {note}" for note in facts["notes"]]
    return [f"Data: {facts['source']}", *columns(rows), *notes]


def _whole(facts: Mapping[str, Any], rows: int) -> int:
    """The rows of the whole file, from those of its beginning."""
    return round(rows * facts["bytes"] / facts["bytes_read"]) if not facts["complete"] else rows


def _classes(classes: Mapping[str, int]) -> str:
    counts = [f"{name} ({count})" for name, count in classes.items()]
    return f", {len(classes)} classes: {_some(counts, count=False)}" if classes else ""


def _describe_sample(sample: Mapping[str, Any]) -> list[tuple[str, str]]:
    sizes = " to ".join(f"{width} x {height}" for width, height in sample["sizes"])
    checked = f"checked {sample['checked']} of {sample['of']}, {sample['bad']} bad"
    rows = [("decoded", f"{checked}; {sizes} pixels" if sizes else checked)]
    return rows + [("", f"{where}: {reason}") for where, reason in sample["first"]]


def _describe_model(facts: Mapping[str, Any]) -> list[str]:
    family, architecture = facts["family"], facts["architecture"]
    named = family if family == architecture else f"{family} ({architecture})"
    rows = [("family", named), ("task", facts["task"])]
    if facts["labels"]:
        rows.append(("labels", _some(facts["labels"])))
    rows.append(("head", facts["head"]))
    if facts["modality"] is not None:
        rows.append(("takes", _input(facts)))
    if facts["targets"]:
        rows += _describe_targets(facts)
    if facts["parameters"]:
        size = format_size(facts["bytes"])
        rows.append(("file", f"{facts['parameters']:,} parameters, {facts['dtype']}, {size}"))
    notes = [f"note: {note}" for note in facts["notes"]]
    return [f"Model: {facts['source']}", *columns(rows), *notes]


def _describe_targets(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    targets, trained = facts["targets"], facts["trained"]
    guess = "" if facts["targets_certain"] else " (by the file alone; adapt shows the real ones)"
    rows = [("adapts", f"{len(targets)} layers{guess}")]
    # one line for what differs in a number only: the layers of a stack
    groups: dict[str, int] = {}
    for target in targets:
        pattern = re.sub(r"\d+", "*", target["name"])
        groups[pattern] = groups.get(pattern, 0) + 1
    rows += [("", f"{count} x {pattern}") for pattern, count in list(groups.items())[:MOST]]
    if len(groups) > MOST:
        rows.append(("", f"and {len(groups) - MOST} more kinds"))
    share = f", {trained / facts['parameters']:.1%} of the model" if facts["parameters"] else ""
    return [*rows, ("trains", f"{trained:,} parameters at rank {facts['rank']}{share}")]


def _input(facts: Mapping[str, Any]) -> str:
    limit = facts["input_limit"]
    if limit is None:
        return str(facts["modality"])
    unit = f"pictures of {limit} x {limit} pixels" if facts["modality"] == "image" else ""
    return unit or f"{facts['modality']}, up to {limit} tokens"


def _some(names: Sequence[str], *, count: bool = True) -> str:
    shown = ", ".join(names[:MOST])
    rest = f", and {len(names) - MOST} more" if len(names) > MOST else ""
    return f"{len(names)}: {shown}{rest}" if count else shown + rest
