"""The options of `adapt` that say how a session is computed, within which limits, and when."""

from __future__ import annotations

from typing import Annotated

import typer

from edge_pslora.config import DEVICES, PREFIX_CACHES, Precision, PrefixCache

BUDGETS = "Budgets"
ELIGIBILITY = "When the device may learn"
ENGINE = "How it is computed"

# Budgets
RamBudget = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Most memory to use, such as 1GB.", rich_help_panel=BUDGETS),
]
TimeBudget = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="Training ends early enough for all to take so long, such as 90s or 1h30m; what was learned "
        "until then counts.",
        rich_help_panel=BUDGETS,
    ),
]
DiskBudget = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Most that the workspace may take on disk, while learning too.",
        rich_help_panel=BUDGETS,
    ),
]
PlanOnly = Annotated[
    bool,
    typer.Option(
        "--plan",
        help="Only say how it would be computed and what that takes; nothing is changed.",
        rich_help_panel=BUDGETS,
    ),
]

# When the device may learn
OnlyOnPower = Annotated[
    bool,
    typer.Option("--only-on-power", help="Not on the battery.", rich_help_panel=ELIGIBILITY),
]
MinBattery = Annotated[
    str | None,
    typer.Option(
        metavar="PERCENT", help="Not below this charge, such as 30%.", rich_help_panel=ELIGIBILITY
    ),
]
MaxTemperature = Annotated[
    str | None,
    typer.Option(
        metavar="DEGREES",
        help="Not while a sensor is hotter, such as 80C.",
        rich_help_panel=ELIGIBILITY,
    ),
]
MaxLoad = Annotated[
    float | None,
    typer.Option(
        metavar="X", help="Not while the load of a minute is higher.", rich_help_panel=ELIGIBILITY
    ),
]
MinFree = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE", help="Not with less free on the disk.", rich_help_panel=ELIGIBILITY
    ),
]

# How it is computed
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="NAME",
        help=f"Where the model learns: {DEVICES}, which takes a GPU where torch sees one. Head, merge, "
        "export and checks stay on the CPU. Default: cpu, where the same run gives the same bytes.",
        rich_help_panel=ENGINE,
    ),
]
PrecisionOption = Annotated[
    Precision | None,
    typer.Option(
        "--precision",
        metavar="NAME",
        help="Of the frozen weights' products in training: float32, bf16, or auto, which is bf16 for large "
        "matrices where the processor multiplies them so. Default: auto.",
        rich_help_panel=ENGINE,
    ),
]
MicroBatch = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Samples at once; the gradients of a batch's parts add up. Default: the whole batch, or what "
        "--ram-budget allows.",
        rich_help_panel=ENGINE,
    ),
]
Checkpointing = Annotated[
    bool | None,
    typer.Option(
        "--checkpointing/--no-checkpointing",
        help="Compute activations twice instead of keeping them: less memory, a third more time. "
        "Default: only where --ram-budget asks for it.",
        rich_help_panel=ENGINE,
    ),
]
PrefixCacheOption = Annotated[
    PrefixCache | None,
    typer.Option(
        "--prefix-cache",
        metavar="FORM",
        help="How the results of the layers below the lowest update are kept on disk during the "
        f"session: {', '.join(PREFIX_CACHES)}. Default: auto, exact where it pays and fits.",
        rich_help_panel=ENGINE,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Threads of computation. Default: all cores.",
        rich_help_panel=ENGINE,
    ),
]
Nice = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=0,
        max=19,
        help="How far other programs come first, 0 to 19. Default: as it was started.",
        rich_help_panel=ENGINE,
    ),
]
