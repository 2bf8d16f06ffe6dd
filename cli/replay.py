"""`edge-pslora replay`: the receiver's side of `export --format delta`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edge_pslora.cli import options as o
from edge_pslora.cli.output import columns, print_result
from edge_pslora.units import format_size

DeltaArgument = Annotated[
    Path, typer.Argument(metavar="DELTA", help="delta.safetensors, or the folder of the export.")
]
Base = Annotated[
    Path,
    typer.Option(
        "--base", metavar="FILE", help="Safetensors file of the base weights, or its folder."
    ),
]
Parent = Annotated[
    Path | None,
    typer.Option(
        "--parent",
        metavar="FILE",
        help="model.safetensors of the generation before, or its folder. Default: the base, which a "
        "first generation goes on from.",
    ),
]
Onnx = Annotated[
    Path | None,
    typer.Option(
        "--onnx",
        metavar="FILE",
        help="A deployed model.onnx of the generation before, which becomes this one's, in place.",
    ),
]
Out = Annotated[Path, typer.Option("--out", metavar="FILE", help="Safetensors file to write.")]


def replay(
    delta: DeltaArgument,
    base: Base,
    out: Out,
    parent: Parent = None,
    onnx: Onnx = None,
    as_json: o.AsJson = False,
    debug: o.Debug = False,
) -> None:
    """Make the next merged model from a delta, bit for bit, without torch.

    Every file is checked by its sha256 before, and the result before it gets its name.
    """
    if onnx is None:
        from edge_pslora.update.replay import replay as replay_delta

        result = replay_delta(delta, base, parent, out)
    else:
        from edge_pslora.exporters.replay_onnx import replay_onnx

        result = replay_onnx(delta, base, parent, out, onnx)
    before = "the base" if result.parent is None else f"generation {result.parent}"
    rows = [
        ("generation", f"{result.generation}, from {before}"),
        (
            "tensors",
            f"{result.tensors}: {len(result.replayed)} replayed by {result.rule}, "
            f"{len(result.replaced)} replaced",
        ),
        ("size", format_size(result.bytes)),
        ("sha256", f"{result.sha256}, as published"),
    ]
    facts = {**result.to_dict(), "onnx": None if onnx is None else str(onnx)}
    names = [str(out), *([] if onnx is None else [str(onnx)])]
    print_result(facts, [*names, *columns(rows)], as_json=as_json)
