"""`edge-pslora rollback` and `merge`: between generations, and between files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edge_pslora.cli import model_options as m
from edge_pslora.cli import options as o
from edge_pslora.cli.output import columns, print_result
from edge_pslora.config import MAX_UPDATE, MERGE_RULES, MergeRule
from edge_pslora.units import format_size

To = Annotated[
    int | None,
    typer.Option(
        "--to", metavar="N", min=1, help="Generation; default: the parent of the current one."
    ),
]
AdaptersArgument = Annotated[
    list[Path], typer.Argument(metavar="ADAPTER...", help="PEFT adapter folders, oldest first.")
]
Base = Annotated[
    Path,
    typer.Option(
        "--base", metavar="FILE", help="Safetensors file of the base weights, or its folder."
    ),
]
Out = Annotated[Path, typer.Option("--out", metavar="FILE", help="Safetensors file to write.")]
Rule = Annotated[
    MergeRule,
    typer.Option(
        "--rule", metavar="RULE", help=f"How adapters are joined: {', '.join(MERGE_RULES)}."
    ),
]
MaxUpdate = Annotated[
    float,
    typer.Option(
        "--max-update",
        metavar="X",
        min=0.0,
        help="Most that may be added to a weight, times the weight (norms).",
    ),
]


def rollback(
    workspace: o.WorkspaceArgument = m.DEFAULT_WORKSPACE,
    to: To = None,
    as_json: o.AsJson = False,
    debug: o.Debug = False,
) -> None:
    """Serve an earlier (or later) generation; nothing is deleted."""
    from edge_pslora.workspace.lock import writer_lock
    from edge_pslora.workspace.workspace import Workspace

    opened = Workspace.open(workspace)
    with writer_lock(workspace):
        served = opened.rollback(to)
    if served is None:
        line = f"Nothing of {workspace} is served now: the update on trial was its first."
        print_result(
            dict.fromkeys(("generation", "task", "parent", "path")), [line], as_json=as_json
        )
        return
    facts = {
        "generation": served.number,
        "task": served.manifest.task,
        "parent": served.manifest.parent,
        "path": str(served.path),
    }
    line = f"Generation {served.number} of {workspace} is now served (task {served.manifest.task})."
    print_result(facts, [line], as_json=as_json)


def merge(
    adapters: AdaptersArgument,
    base: Base,
    out: Out,
    rule: Rule = "constructive",
    max_update: MaxUpdate = MAX_UPDATE,
    as_json: o.AsJson = False,
    debug: o.Debug = False,
) -> None:
    """Merge PEFT adapters into base weights, without torch."""
    from edge_pslora.merge_files import merge as merge_files

    result = merge_files(adapters, base, out, rule=rule, max_update=max_update)
    rows = [
        ("adapters", f"{len(result.adapters)}, joined by {result.rule}"),
        ("tensors", f"{result.tensors}, of which {len(result.merged)} were merged"),
        ("size", format_size(result.bytes)),
    ]
    print_result(result.to_dict(), [str(out), *columns(rows)], as_json=as_json)
