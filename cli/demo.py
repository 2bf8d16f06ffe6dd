"""`edge-pslora demo`: the whole loop on bundled real data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edge_pslora.cli import options as o
from edge_pslora.cli.loading import heavy_imports
from edge_pslora.cli.output import print_result
from edge_pslora.cli.quiet import working

Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for what the demo makes.")]


def demo(
    out: Out = Path("edge-pslora-demo"),
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Run the whole loop on bundled handwritten digits: offline, under two minutes."""
    with working(quiet=quiet, debug=debug) as progress:
        with heavy_imports():
            from edge_pslora.demo import run_demo

        result = run_demo(out, progress)
    print_result(result.to_dict(), result.lines(), as_json=as_json)
