"""The options of every command but for model and data: names, units, defaults, one line of help each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from edge_pslora.config import (
    FACTOR_FORMS,
    MERGE_RULES,
    ClassBalance,
    Compete,
    FactorForm,
    HeadKind,
    HistoryCache,
    MergeRule,
    StabilityReading,
)

BUDGETS = "Budgets"
LEARNING, STABILITY, GATE, OUTPUT = "Learning", "Stability and merge", "Promotion", "Output and run"

WorkspaceArgument = Annotated[Path, typer.Argument(metavar="WORKSPACE", help="Workspace folder.")]
GenerationOption = Annotated[
    int | None,
    typer.Option("--generation", metavar="N", min=1, help="Generation; default: the current one."),
]

# Budgets
HistoryBudget = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Size of the remembered past, whatever the number of sessions. Default: 1MB.",
        rich_help_panel=BUDGETS,
    ),
]
AnchorBudget = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Size of the samples kept to measure forgetting. Default: 4MB.",
        rich_help_panel=BUDGETS,
    ),
]
HeadBudget = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Size of what an analytic head remembers of the features; labels come on top. "
        "Default: 16MB.",
        rich_help_panel=BUDGETS,
    ),
]

# Learning
Preset = Annotated[
    Literal["default", "paper", "sequential"],
    typer.Option(
        metavar="NAME",
        help="What the other options change: default (measured best), paper (the published "
        "method) or sequential (plain LoRA).",
        rich_help_panel=LEARNING,
    ),
]
Rank = Annotated[
    int | None,
    typer.Option(metavar="R", help="Rank of the update. Default: 8.", rich_help_panel=LEARNING),
]
Alpha = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="Scale of the update is alpha / rank. Default: 16.",
        rich_help_panel=LEARNING,
    ),
]
Epochs = Annotated[
    int | None,
    typer.Option(metavar="N", help="Passes over the data. Default: 3.", rich_help_panel=LEARNING),
]
BatchSize = Annotated[
    int | None,
    typer.Option(metavar="N", help="Samples per step. Default: 32.", rich_help_panel=LEARNING),
]
LearningRate = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="Peak learning rate. Default: 5e-4; of a language model more, the narrower its layers, "
        "up to 4e-3.",
        rich_help_panel=LEARNING,
    ),
]
Head = Annotated[
    HeadKind | None,
    typer.Option(
        metavar="KIND",
        help="auto, analytic (ridge on running statistics), linear (SGD) or label-text (the names' "
        "embeddings; texts only). Default: auto.",
        rich_help_panel=LEARNING,
    ),
]
Ridge = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="Ridge of an analytic head, relative to the mean square of a feature. Default: chosen "
        "in each session by leave-one-out.",
        rich_help_panel=LEARNING,
    ),
]
ClassBalanceOption = Annotated[
    ClassBalance | None,
    typer.Option(
        "--class-balance",
        metavar="NAME",
        help="session: every class of a session weighs the same in an analytic head; or none. "
        "Default: none.",
        rich_help_panel=LEARNING,
    ),
]
CompeteOption = Annotated[
    Compete | None,
    typer.Option(
        "--compete",
        metavar="NAME",
        help="Which labels a sample is trained against, with an analytic head: session (those of its "
        "own), all, or auto: all where features do not tell the session's apart. Default: auto.",
        rich_help_panel=LEARNING,
    ),
]
LabelTemplate = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="What a label-text head embeds, such as 'a text about {}'. Default: {}.",
        rich_help_panel=LEARNING,
    ),
]
EarlyStop = Annotated[
    bool,
    typer.Option(
        "--early-stop",
        help="Watch a tenth of the samples instead of learning from them, end when their loss no "
        "longer falls, and keep the best state.",
        rich_help_panel=LEARNING,
    ),
]
LabelSmoothing = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="Share of a target's mass that all labels get alike, 0 to 1. Default: 0.",
        rich_help_panel=LEARNING,
    ),
]
BalancedSampling = Annotated[
    bool,
    typer.Option(
        "--balanced-sampling",
        help="Draw the same number of samples from each class in an epoch.",
        rich_help_panel=LEARNING,
    ),
]
AdaptDepth = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="Share of the model's blocks, from the top, that may get an update: 0.5 trains the upper "
        "half, and the lower one runs once a session. Default: 1.",
        rich_help_panel=LEARNING,
    ),
]
TrainNorms = Annotated[
    bool,
    typer.Option(
        "--train-norms", help="Also train normalisation layers.", rich_help_panel=LEARNING
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Same seed, same bytes (with the same threads). Default: 0.",
        rich_help_panel=LEARNING,
    ),
]

# Stability and merge
Merge = Annotated[
    MergeRule | None,
    typer.Option(
        metavar="RULE",
        help=f"How the update joins the past: {', '.join(MERGE_RULES)}. Default: constructive.",
        rich_help_panel=STABILITY,
    ),
]
Factors = Annotated[
    FactorForm | None,
    typer.Option(
        metavar="FORM",
        help=f"What the update is rounded to before it is merged, so that `export --format delta` can "
        f"ship it: {', '.join(FACTOR_FORMS)}. Default: int12.",
        rich_help_panel=STABILITY,
    ),
]
StabilityWeight = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="Weight of the stability loss, 0 = off. Default: 0.1.",
        rich_help_panel=STABILITY,
    ),
]
StabilityTemperature = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="Sharpness, in units of 1 / rms of the layer's past. Default: 1.",
        rich_help_panel=STABILITY,
    ),
]
StabilityReadingOption = Annotated[
    StabilityReading | None,
    typer.Option(
        "--stability-reading",
        metavar="NAME",
        help="Reading of the paper's Eq. 4: elementwise or product. Default: elementwise.",
        rich_help_panel=STABILITY,
    ),
]
NoDirection = Annotated[
    bool,
    typer.Option(
        "--no-direction",
        help="Stability loss without its direction part.",
        rich_help_panel=STABILITY,
    ),
]
NoMagnitude = Annotated[
    bool,
    typer.Option(
        "--no-magnitude",
        help="Stability loss without its magnitude part.",
        rich_help_panel=STABILITY,
    ),
]
StabilityEvery = Annotated[
    int | None,
    typer.Option(
        metavar="K",
        help="Compute the stability loss at every K-th step only, times K. Default: 1.",
        rich_help_panel=STABILITY,
    ),
]
StabilityStride = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Compare with every N-th row of the past, others at each step: unbiased, costs 1/N; "
        "1 = exact. Default: 6.",
        rich_help_panel=STABILITY,
    ),
]
StabilityFeatures = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="Weight of how far a session moves the features of its samples, with an analytic head; "
        "0 = off. Default: 1.",
        rich_help_panel=STABILITY,
    ),
]
StabilityPull = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="Most that the stability loss may pull, in gradients of the task. Default: 0.3; of the "
        "preset paper: any.",
        rich_help_panel=STABILITY,
    ),
]
StabilityCache = Annotated[
    HistoryCache | None,
    typer.Option(
        metavar="NAME",
        help="int8 keeps tanh of the past in memory, one byte per adapted weight, off by at most "
        "1/254: faster. Default: none.",
        rich_help_panel=STABILITY,
    ),
]

# Promotion
MaxForgetting = Annotated[
    float | None,
    typer.Option(
        metavar="FRACTION",
        help="Accepted loss of accuracy on earlier tasks; 0.01 = one point. Default: 0.01.",
        rich_help_panel=GATE,
    ),
]
Force = Annotated[
    bool,
    typer.Option("--force", help="Promote even if the accuracy is worse.", rich_help_panel=GATE),
]

# Output and run
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object.", rich_help_panel=OUTPUT)
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress bars.", rich_help_panel=OUTPUT)
]
Debug = Annotated[
    bool,
    typer.Option(
        "--debug", help="Tracebacks and other libraries' messages.", rich_help_panel=OUTPUT
    ),
]
