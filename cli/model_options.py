"""Options that say which model, and which of its layers: names, units, defaults, one line of help each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

MODEL = "Model"
DEFAULT_WORKSPACE = Path("edge-pslora")

Workspace = Annotated[
    Path,
    typer.Option("--workspace", metavar="DIR", help="Workspace folder.", rich_help_panel=MODEL),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="SRC",
        help="Needed the first time: a Hugging Face folder, package.module:factory, a .pt2 file of "
        "torch.export (one float input, a batch of any size), or auto.",
        rich_help_panel=MODEL,
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Safetensors file for package.module:factory.", rich_help_panel=MODEL
    ),
]
AdapterFolders = Annotated[
    list[Path] | None,
    typer.Option(
        "--adapter",
        metavar="FOLDER",
        help="PEFT LoRA folder for SRC that counts as a past session: merged, remembered, not "
        "forgotten. Only the first time; repeatable, oldest first.",
        rich_help_panel=MODEL,
    ),
]
Target = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Layer to adapt: a name, its end or a pattern with *; repeatable. Default: auto.",
        rich_help_panel=MODEL,
    ),
]
HeadModule = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Name of the model's own classifier layer. Default: found by itself.",
        rich_help_panel=MODEL,
    ),
]
MaxLength = Annotated[
    int | None,
    typer.Option(
        metavar="TOKENS",
        help="Longest text, in tokens. Default: 128.",
        rich_help_panel=MODEL,
    ),
]
ImageSize = Annotated[
    int | None,
    typer.Option(
        metavar="PIXELS",
        min=1,
        help="Side of the square that images are scaled to. Default: the model's own.",
        rich_help_panel=MODEL,
    ),
]
ImageMean = Annotated[
    str | None,
    typer.Option(
        metavar="X[,Y,Z]",
        help="Mean of the pixels (0 to 1), one or per channel. Default: the model's own.",
        rich_help_panel=MODEL,
    ),
]
ImageStd = Annotated[
    str | None,
    typer.Option(
        metavar="X[,Y,Z]",
        help="Standard deviation of the pixels, likewise.",
        rich_help_panel=MODEL,
    ),
]
