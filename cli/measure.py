"""`edge-pslora eval`, `status` and `report`: looking without changing anything."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge_pslora.cli import data_options as d
from edge_pslora.cli import model_options as m
from edge_pslora.cli import options as o
from edge_pslora.cli.loading import heavy_imports
from edge_pslora.cli.output import OTHER_FIGURES, columns, fraction, print_result, table
from edge_pslora.cli.quiet import working
from edge_pslora.errors import WorkspaceError
from edge_pslora.units import format_size

if TYPE_CHECKING:
    from edge_pslora.workspace.workspace import Workspace

Verify = Annotated[
    bool, typer.Option("--verify", help="Also check the sha256 of every file (reads them all).")
]
Layers = Annotated[
    bool, typer.Option("--layers", help="Also show the certificate of each layer's history.")
]
CompareTorch = Annotated[
    bool, typer.Option("--compare-torch", help="Also run torch, and compare it with the ONNX file.")
]
ReportOut = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="FILE", help="Write the page there; default: edge-pslora-report.html."
    ),
]


def evaluate(
    workspace: o.WorkspaceArgument,
    data: d.DataArgument,
    generation: o.GenerationOption = None,
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
    compare_torch: CompareTorch = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Measure a generation on DATA (its test part, if it has one)."""
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
    )
    with working(quiet=quiet, debug=debug):
        # Torch is imported here and not above: --help has to start fast.
        with heavy_imports():
            from edge_pslora.evaluation import evaluate as measure

        result = measure(
            workspace,
            data,
            generation=generation,
            read=read,
            compare_torch=compare_torch,
        )
    facts = result.to_dict()
    print_result(facts, _describe_evaluation(facts), as_json=as_json)


def _describe_evaluation(facts: dict[str, Any]) -> list[str]:
    metric = facts["metric"]
    lines = [f"Generation {facts['generation']} on {facts['samples']} samples"]
    rows = [(metric, fraction(facts["accuracy"]))]
    figures = facts["figures"]
    rows += [(name, f"{figures[name]:.4g}") for name in OTHER_FIGURES if name in figures]
    if facts["agreement"] is not None:
        same = f"same answer for {fraction(facts['agreement'])} of them"
        rows.append(("onnx = torch", f"{same}, logits to {facts['max_abs_error']:.1e}"))
    if facts["unknown_labels"]:
        rows.append(("never learned", _some(list(facts["unknown_labels"]))))
    if facts["rejected"]:
        rows.append(("set aside", f"{facts['rejected']} rows that could not be read"))
    lines += columns(rows)
    if facts["per_label"]:
        cells = [(label, fraction(value)) for label, value in facts["per_label"].items()]
        lines += ["", *table(("label", metric), cells)]
    return lines


def status(
    workspace: o.WorkspaceArgument = m.DEFAULT_WORKSPACE,
    verify: Verify = False,
    layers: Layers = False,
    as_json: o.AsJson = False,
    debug: o.Debug = False,
) -> None:
    """Show what is served, what is kept, and whether anything is damaged (exit code 4)."""
    from edge_pslora.workspace.workspace import Workspace

    facts = Workspace.open(workspace).status(verify=verify)
    lines = _describe_status(facts)
    if layers:
        lines += _describe_layers(facts["certificate"].get("layers", []))
    print_result(facts, lines, as_json=as_json)
    if facts["damage"]:
        raise typer.Exit(WorkspaceError.exit_code)


def _describe_status(facts: dict[str, Any]) -> list[str]:
    if facts["generation"] is None:
        served = "nothing yet: run edge-pslora adapt"
    else:
        served = f"generation {facts['generation']}, task {facts['task']}"
    rows = [("served", served), ("labels", _some(facts["labels"]))]
    metrics = facts["metrics"]
    if isinstance(metrics.get("accuracy_after"), float):
        rows.append(("accuracy", f"{fraction(metrics['accuracy_after'])} on its task"))
    if isinstance(metrics.get("retention"), float):
        rows.append(("retention", f"{fraction(metrics['retention'])} of what was known"))
    rows += [
        ("history", _describe_history(facts)),
        ("disk", format_size(facts["disk_bytes"])),
    ]
    if facts["updates"] is not None:
        rows += _describe_updates(facts["updates"])
    lines = [facts["workspace"], *columns(rows)]
    if facts["generations"]:
        checked = facts["verified"] or bool(facts["damage"])
        header = ("generation", "task", "created", "parent", "labels", "size")
        cells = [_generation_row(row, checked) for row in facts["generations"]]
        lines += ["", *table((*header, "files") if checked else header, cells, left=3)]
    lines += [f"warning: {line}" for line in facts["warnings"]]
    return lines + [f"damaged: {line}" for line in facts["damage"]]


def _describe_updates(updates: dict[str, Any]) -> list[tuple[str, str]]:
    """The rows on signed updates; "?" is what could not be read."""
    known = {name: "?" if value is None else value for name, value in updates.items()}
    rows = [("updates", f"counter {known['counter']}, for {known['device_class']}")]
    if updates["failed_counter"]:
        rows.append(("refused", f"the bundle with counter {updates['failed_counter']}"))
    trial = updates["trial"]
    if trial is not None:
        then = "nothing" if trial["previous"] is None else f"generation {trial['previous']}"
        words = f"generation {trial['generation']}, {trial['attempts']} health checks; else {then}"
        rows.append(("on trial", words))
    rows.append(("trust", f"root {known['root_version']}, metadata until {known['expires']}"))
    return rows


def _describe_history(facts: dict[str, Any]) -> str:
    size = format_size(facts["history_bytes"])
    if not facts[
        "history_bytes"
    ]:  # a signed update came without it: its certificate is of another's
        return "none here"
    entries, weight = (
        facts["certificate"].get(name) for name in ("proven_signs", "sign_agreement")
    )
    if not isinstance(entries, float) or not isinstance(weight, float):
        return size
    return f"{size}, signs proven: {fraction(entries)} of all entries, {fraction(weight)} by weight"


def _describe_layers(layers: list[dict[str, Any]]) -> list[str]:
    """The certificate of every layer's history."""
    cells = [
        (
            str(layer["name"]),
            str(layer["history_rank"]),
            "-" if layer["eps"] is None else f"{layer['eps']:.1e}",
            fraction(layer["proven_signs"]),
            fraction(layer["sign_agreement"]),
        )
        for layer in layers
    ]
    header = ("layer", "rank", "error at most", "signs proven", "by weight")
    return ["", *table(header, cells)] if cells else ["", "no history yet"]


def _generation_row(row: dict[str, Any], checked: bool) -> tuple[str, ...]:
    cells = (
        f"{'*' if row['current'] else ' '} {row['number']}",
        row["task"] or "?",
        row["created"] or "?",
        "-" if row["parent"] is None else str(row["parent"]),
        str(row["labels"]),
        format_size(row["disk_bytes"]),
    )
    return (*cells, "damaged" if row["damage"] else "ok") if checked else cells


def _some(names: list[str], most: int = 8) -> str:
    shown = ", ".join(names[:most])
    rest = len(names) - most
    return f"{len(names)}: {shown}, and {rest} more" if rest > 0 else f"{len(names)}: {shown}"


def report(
    workspace: o.WorkspaceArgument = m.DEFAULT_WORKSPACE,
    out: ReportOut = None,
    generation: o.GenerationOption = None,
    as_json: o.AsJson = False,
    debug: o.Debug = False,
) -> None:
    """Write one HTML page on all generations; or, with --generation, show or copy that one's page."""
    from edge_pslora.workspace import durable, layout
    from edge_pslora.workspace.workspace import Workspace

    opened = Workspace.open(workspace)
    if generation is None:
        _report_all(opened, out or Path("edge-pslora-report.html"), as_json=as_json)
        return
    chosen = opened.published(generation)
    page = chosen.file(layout.REPORT)
    if out is not None:
        durable.copy_file(page, out)
        page = out
    facts = {"generation": chosen.number, "report": str(page)}
    print_result(facts, [str(page)], as_json=as_json)


def _report_all(workspace: Workspace, out: Path, *, as_json: bool) -> None:
    # the template engine takes a while to import
    from edge_pslora.charts.extra import can_draw
    from edge_pslora.pages.workspace import NO_DRAWINGS, workspace_page
    from edge_pslora.workspace import durable

    serving = workspace.published().number
    durable.write_bytes(out, workspace_page(workspace).encode())
    if not can_draw():
        typer.echo(f"note: {NO_DRAWINGS}", err=True)
    facts = {"generation": serving, "report": str(out), "charts": can_draw()}
    print_result(facts, [str(out)], as_json=as_json)
