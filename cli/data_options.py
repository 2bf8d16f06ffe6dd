"""Options that say how DATA is read: names, units, defaults, one line of help each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edge_pslora.config import TaskType

DATA = "Data"

DataArgument = Annotated[
    Path,
    typer.Argument(
        metavar="DATA",
        help="A .npz (x, y), .csv or .jsonl file, a folder of class folders with images, or a "
        "folder with train.jsonl, valid.jsonl, test.jsonl.",
    ),
]
Task = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Name of this session's task. Default: the name of DATA.",
        rich_help_panel=DATA,
    ),
]
LabelColumn = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Column or key of the label. Default: label, or the last column.",
        rich_help_panel=DATA,
    ),
]
TextColumn = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Column or key of the text. Default: text.",
        rich_help_panel=DATA,
    ),
]
Missing = Annotated[
    list[float] | None,
    typer.Option(
        metavar="NUMBER",
        help="Number that stands for a missing value, such as -9; repeatable.",
        rich_help_panel=DATA,
    ),
]
TaskTypeOption = Annotated[
    TaskType | None,
    typer.Option(
        "--task-type",
        metavar="TYPE",
        help="classification, regression, multilabel or language. Default: seen from the data.",
        rich_help_panel=DATA,
    ),
]
