"""Options that say how DATA is read: names, units, defaults, one line of help each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from edge_pslora.config import TaskType
from edge_pslora.errors import UsageError
from edge_pslora.units import parse_duration

if TYPE_CHECKING:
    from edge_pslora.data.options import ReadOptions

DATA, RECORDINGS = "Data", "Sensor recordings"

DataArgument = Annotated[
    Path,
    typer.Argument(
        metavar="DATA",
        help="A file: .npz (x, y), .npy (x.npy beside y.npy), .csv, .tsv, .data, .parquet, .jsonl, .ndjson "
        "(text and label, or the shapes of mlx-lm and Hugging Face), .txt, .md (plain text for language "
        "models, or a table). A folder: with train, valid and test as such files; of class folders with "
        "images; of class folders with sounds (.wav, .flac, .ogg); of sensor recordings (.csv, with "
        "--window); or of plain text.",
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
        help="Column or key of the label, or the column's index. Default: label, or the last column.",
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
FeatureColumns = Annotated[
    str | None,
    typer.Option(
        metavar="A,B,...",
        help="Feature columns, or channels, by name or index. Default: all but the label.",
        rich_help_panel=DATA,
    ),
]
IgnoreColumns = Annotated[
    str | None,
    typer.Option(
        metavar="A,B,...",
        help="Columns that are neither feature nor label.",
        rich_help_panel=DATA,
    ),
]
KeepDuplicates = Annotated[
    bool,
    typer.Option(
        "--keep-duplicates",
        help="Train also on samples that come twice with the same label.",
        rich_help_panel=DATA,
    ),
]
NoKeepSamples = Annotated[
    bool,
    typer.Option(
        "--no-keep-samples",
        help="Keep no sample: no anchor set (forgetting is not measured then), and no contents of "
        "rows that were set aside.",
        rich_help_panel=DATA,
    ),
]
Window = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="Cut recordings into windows of this length, such as 2s or 500ms.",
        rich_help_panel=RECORDINGS,
    ),
]
Hop = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="From one window's start to the next's. Default: no overlap.",
        rich_help_panel=RECORDINGS,
    ),
]
Rate = Annotated[
    float | None,
    typer.Option(
        metavar="HZ",
        help="Readings per second after resampling. Default: the recordings' own, rounded; give it "
        "where later recordings may differ.",
        rich_help_panel=RECORDINGS,
    ),
]
TimeColumn = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Column of the time. Default: time, timestamp or the like.",
        rich_help_panel=RECORDINGS,
    ),
]
TimeUnit = Annotated[
    Literal["s", "ms", "us", "ns"] | None,
    typer.Option(
        metavar="UNIT",
        help="Its unit: s, ms, us or ns. Default: seen from its values.",
        rich_help_panel=RECORDINGS,
    ),
]
GroupColumn = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Column of the person or run: no window holds two of them.",
        rich_help_panel=RECORDINGS,
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


def read_options(
    *,
    label_column: str | None,
    text_column: str | None,
    feature_columns: str | None,
    ignore_columns: str | None,
    missing: list[float] | None,
    window: str | None,
    hop: str | None,
    rate: float | None,
    time_column: str | None,
    time_unit: Literal["s", "ms", "us", "ns"] | None,
    group_column: str | None,
    task_type: TaskType | None = None,
    keep_duplicates: bool = False,
    keep_samples: bool = True,
) -> ReadOptions:
    """The flags above as the library's settings.

    Raises:
        UsageError: a value that the settings refuse.
    """
    from edge_pslora.data.options import ReadOptions

    return ReadOptions(
        label_column=label_column,
        text_column=text_column,
        feature_columns=_names(feature_columns, "--feature-columns"),
        ignore_columns=_names(ignore_columns, "--ignore-columns"),
        task_type=task_type,
        missing=tuple(missing or ()),
        window_seconds=_seconds(window, "--window"),
        hop_seconds=_seconds(hop, "--hop"),
        rate_hz=rate,
        time_column=time_column,
        time_unit=time_unit,
        group_column=group_column,
        keep_duplicates=keep_duplicates,
        keep_samples=keep_samples,
    )


def _names(text: str | None, where: str) -> tuple[str, ...]:
    if text is None:
        return ()
    names = tuple(part.strip() for part in text.split(","))
    if not all(names):
        raise UsageError(
            where,
            expected="names with commas between",
            found=repr(text),
            remedy="write it as a,b,c",
        )
    return names


def _seconds(text: str | None, where: str) -> float | None:
    if text is None:
        return None
    flat = text.strip().lower()
    if flat.endswith("ms"):
        return parse_duration(flat.removesuffix("ms"), where) / 1000
    return parse_duration(flat, where)
