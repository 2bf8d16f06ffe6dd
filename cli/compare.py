"""`edge-pslora compare`: methods beside each other on the user's own sequence of data."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge_pslora.cli import data_options as d
from edge_pslora.cli import engine_options as e
from edge_pslora.cli import model_options as m
from edge_pslora.cli import options as o
from edge_pslora.cli.loading import heavy_imports
from edge_pslora.cli.output import columns, print_result
from edge_pslora.cli.quiet import working
from edge_pslora.cli.settings import adapt_config
from edge_pslora.errors import UsageError

if TYPE_CHECKING:
    from edge_pslora.compare.own import Comparison

DEFAULT_METHODS = "sequential,frozen,pslora"

DataArguments = Annotated[
    list[Path],
    typer.Argument(
        metavar="DATA...",
        help="Files or folders as for adapt, one a session, in the order in which they are learned. "
        "Scored on the test part, else on the valid part, else on a share that is held out.",
    ),
]
Methods = Annotated[
    str,
    typer.Option(metavar="A,B,...", help="Which, by key (--list); all: every one."),
]
Model = Annotated[
    str,
    typer.Option(
        metavar="SRC",
        help="A Hugging Face folder, package.module:factory, a .pt2 file, or auto.",
        rich_help_panel=m.MODEL,
    ),
]
Seeds = Annotated[
    int,
    typer.Option(
        metavar="N",
        min=1,
        help="Runs of each method; several give intervals and tests (pip install 'edge-pslora[compare]').",
    ),
]
Holdout = Annotated[
    float, typer.Option(metavar="SHARE", help="Held out of data without a test and a valid part.")
]
Out = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Append each result to it, as one line of JSON."),
]


def _print_methods(asked: bool) -> None:
    if asked:
        from edge_pslora.compare.methods import METHODS

        rows = [(m.key, f"{m.name}; {m.paper}") for m in METHODS.values()]
        print_result({}, columns(rows), as_json=False)
        raise typer.Exit


ListMethods = Annotated[
    bool,
    typer.Option("--list", is_eager=True, callback=_print_methods, help="List all methods."),
]


def compare(
    data: DataArguments,
    methods: Methods = DEFAULT_METHODS,
    model: Model = "auto",
    weights: m.Weights = None,
    target: m.Target = None,
    max_length: m.MaxLength = None,
    image_size: m.ImageSize = None,
    clip_seconds: m.ClipSeconds = None,
    label_column: d.LabelColumn = None,
    text_column: d.TextColumn = None,
    feature_columns: d.FeatureColumns = None,
    ignore_columns: d.IgnoreColumns = None,
    missing: d.Missing = None,
    task_type: d.TaskTypeOption = None,
    keep_duplicates: d.KeepDuplicates = False,
    window: d.Window = None,
    hop: d.Hop = None,
    rate: d.Rate = None,
    time_column: d.TimeColumn = None,
    time_unit: d.TimeUnit = None,
    group_column: d.GroupColumn = None,
    rank: o.Rank = None,
    epochs: o.Epochs = None,
    batch_size: o.BatchSize = None,
    learning_rate: o.LearningRate = None,
    seeds: Seeds = 1,
    holdout: Holdout = 0.2,
    out: Out = None,
    list_methods: ListMethods = False,
    threads: e.Threads = None,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Learn DATA after DATA with several methods, and say which to use. Publishes nothing.

    Exit codes: 0 compared, 1 failed, 2 wrong use, 4 bad input.
    """
    if not 0 < holdout < 1:
        raise UsageError(
            "--holdout",
            expected="a share between 0 and 1",
            found=f"{holdout:g}",
            remedy="change the option",
        )
    settings = adapt_config(
        "default",
        {
            "rank": rank,
            "target": tuple(target) if target else None,
            "epochs": epochs,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "max_length": max_length,
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
    )
    keys = [key.strip() for key in methods.split(",") if key.strip()]
    with working(quiet=quiet, debug=debug) as progress:
        # Torch is imported here and not above: --help has to start fast.
        with heavy_imports():
            from edge_pslora.compare.own import compare as run_all
            from edge_pslora.models.options import ModelOptions

        if threads is not None:
            import torch

            torch.set_num_threads(threads)
        found = run_all(
            data,
            keys,
            model,
            weights=weights,
            config=settings,
            read=read,
            model_options=ModelOptions(
                max_length=settings.train.max_length,
                image_size=image_size,
                clip_seconds=clip_seconds,
            ),
            seeds=seeds,
            holdout=holdout,
            out=out,
            progress=progress,
        )
        lines = _lines(found)
    print_result(_facts(found), lines, as_json=as_json)


def _facts(found: Comparison) -> dict[str, Any]:
    return {
        "setting": found.setting,
        "tasks": list(found.tasks),
        "samples": list(found.samples),
        "rejected": found.rejected,
        "recommendation": found.sentence,
        "results": [asdict(result) for result in found.results],
    }


def _lines(found: Comparison) -> list[str]:
    from edge_pslora.compare.table import format_results

    named = zip(found.tasks, found.samples, strict=True)
    sizes = ", ".join(f"{name} ({count})" for name, count in named)
    aside = f"; {found.rejected} rows set aside" if found.rejected else ""
    return [
        f"{len(found.tasks)} sessions, {found.setting}: {sizes}{aside}",
        *format_results(found.results),
        found.sentence,
    ]
