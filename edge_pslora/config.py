"""Frozen, validated settings, one dataclass per concern. No torch here: the CLI reads it to show help."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from edge_pslora.errors import UsageError

StabilityReading = Literal["elementwise", "product"]
HistoryCache = Literal["none", "int8"]
MergeRule = Literal["max_magnitude", "cumulative", "constructive", "average", "none"]
HeadKind = Literal["auto", "analytic", "linear", "label-text"]
ClassBalance = Literal["none", "session"]
Compete = Literal["auto", "session", "all"]
TaskType = Literal["classification", "regression", "multilabel", "language"]
FactorForm = Literal["int8", "int12", "bf16", "float32"]
Precision = Literal["auto", "float32", "bf16"]
PrefixCache = Literal["auto", "off", "exact", "bf16", "int8"]
DEVICES = "cpu, cuda, cuda:N, mps or auto"

TASK_TYPES: tuple[TaskType, ...] = ("classification", "regression", "multilabel", "language")

PRECISIONS: tuple[Precision, ...] = ("auto", "float32", "bf16")
PREFIX_CACHES: tuple[PrefixCache, ...] = ("auto", "off", "exact", "bf16", "int8")

MERGE_RULES: tuple[MergeRule, ...] = (
    "max_magnitude",
    "cumulative",
    "constructive",
    "average",
    "none",
)


def _require(condition: bool, where: str, expected: str, found: object) -> None:
    if not condition:
        raise UsageError(where, expected=expected, found=repr(found), remedy="change the option")


# |D| / |W0| of a layer (Frobenius). Hu et al. 2021 (LoRA), table 7, have 6.91 / 61.95 = 0.11 for GPT-3;
# sessions here 0.01 to 0.02. An update as large as the weights is another model, or a wrong scale.
MAX_UPDATE = 1.0
RATE = 5e-4  # the learning rate of all tasks with a head of ours

FACTOR_FORMS: tuple[FactorForm, ...] = ("int8", "int12", "bf16", "float32")  # smallest first


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters: D = scaling * B A, scaling = alpha / rank (rsLoRA: alpha / sqrt(rank)).

    factors: what A and B are rounded to after training and before the merge: the form in which an
    update can be shipped that a receiver replays bit for bit.
    """

    rank: int = 8
    alpha: float = 16.0
    use_rslora: bool = False
    target_modules: tuple[str, ...] = ("auto",)
    factors: FactorForm = "int12"

    def __post_init__(self) -> None:
        _require(1 <= self.rank <= 1024, "--rank", "1 to 1024", self.rank)
        _require(self.alpha > 0, "--alpha", "a positive number", self.alpha)
        _require(len(self.target_modules) > 0, "--target", "at least one name", self.target_modules)
        _require(self.factors in FACTOR_FORMS, "--factors", ", ".join(FACTOR_FORMS), self.factors)

    @property
    def scaling(self) -> float:
        return self.alpha / (self.rank**0.5 if self.use_rslora else self.rank)


@dataclass(frozen=True)
class StabilityConfig:
    """Stability loss L_s (METHOD.md, Eq. 4). weight 0 switches it off.

    temperature: in units of 1 / rms(S) of the layer (dimensionless).
    direction / magnitude: the two parts of the loss, separately switchable.
    every: only at every K-th step, times K. row_stride: the sums over the history take every n-th row
    of a layer, times n, each step another n-th. history_cache: how tanh(a S) is had: "none" from the
    factors at every step, "int8" from one byte per adapted weight, made once per session.
    most_pull: largest norm that the loss' gradient may have, in norms of the task's gradient; None: any.
    Not of the paper; without it one weight was nothing to one network and half of all that moved
    another (benchmarks/LOG.md, 2026-11-26).
    features: weight of the distance that a session's features move (core/feature_drift.py), with an
    analytic head; 0 switches it off. Not of the paper; independent of `weight`.
    """

    weight: float = 0.1
    temperature: float = 1.0
    reading: StabilityReading = "elementwise"
    direction: bool = True
    magnitude: bool = True
    every: int = 1
    row_stride: int = 6
    history_cache: HistoryCache = "none"
    features: float = 1.0
    most_pull: float | None = 0.3

    def __post_init__(self) -> None:
        _require(self.weight >= 0, "--stability-weight", "zero or more", self.weight)
        limit = self.most_pull
        _require(limit is None or limit > 0, "--stability-pull", "more than 0", limit)
        _require(self.features >= 0, "--stability-features", "zero or more", self.features)
        _require(self.temperature > 0, "--stability-temperature", "more than 0", self.temperature)
        _require(
            self.reading in ("elementwise", "product"),
            "--stability-reading",
            "elementwise or product",
            self.reading,
        )
        _require(self.every >= 1, "--stability-every", "at least 1", self.every)
        _require(self.row_stride >= 1, "--stability-stride", "at least 1", self.row_stride)
        _require(
            self.history_cache in ("none", "int8"),
            "--stability-cache",
            "none or int8",
            self.history_cache,
        )

    @property
    def active(self) -> bool:
        return self.weight > 0 and (self.direction or self.magnitude)


@dataclass(frozen=True)
class HeadConfig:
    """The head. analytic: ridge on streaming statistics; linear: trained by SGD; label-text: the
    embeddings of the labels' names.

    ridge: mu relative to trace(G) / d; None: chosen in each session by leave-one-out.
    class_balance: session: every class of a session weighs the same in the statistics.
    compete: which labels a sample is trained against with an analytic head: those of its session, or all;
    auto: those of its session where features tell these apart, else all (training/competing.py).
    transport: map old statistics into the new feature space.
    folds: training sees each sample through a head solved without that sample's fold.
    protect: stability loss and merge also hold a linear head's rows of earlier sessions.
    label_template: what a label-text head embeds, {} stands for the name; None: as in the earlier
    sessions, at first the name alone.
    """

    kind: HeadKind = "auto"
    ridge: float | None = None
    class_balance: ClassBalance = "none"
    compete: Compete = "auto"
    transport: bool = True
    transport_ridge: float = 1e-2
    folds: int = 4
    protect: bool = True
    label_template: str | None = None

    def __post_init__(self) -> None:
        _require(
            self.kind in ("auto", "analytic", "linear", "label-text"),
            "--head",
            "auto, analytic, linear or label-text",
            self.kind,
        )
        _require(self.ridge is None or self.ridge > 0, "--ridge", "more than 0", self.ridge)
        _require(
            self.class_balance in ("none", "session"),
            "--class-balance",
            "none or session",
            self.class_balance,
        )
        _require(
            self.compete in ("auto", "session", "all"),
            "--compete",
            "auto, session or all",
            self.compete,
        )
        template = self.label_template
        _require(
            template is None or "{}" in template,
            "--label-template",
            "a text with {} in the place of the label",
            template,
        )
        _require(self.folds >= 2, "folds", "at least 2", self.folds)


@dataclass(frozen=True)
class TrainConfig:
    """The optimiser's settings (AdamW on adapter weights; `epochs` passes over the session's data).

    early_stop: a tenth of the session's samples is watched instead of learned from; the state with the
    least loss there is kept. label_smoothing: share of the mass that all labels get alike.
    balanced_sampling: an epoch draws the same number of samples from each class. head_rate: the rate,
    in learning rates, of a linear head that starts from nothing (benchmarks/LOG.md, 2026-11-26); a
    classifier that came with the model has the adapters'. learning_rate: None: by the kind of task and
    the model (training/rate.py).
    """

    learning_rate: float | None = None
    head_rate: float = 10.0
    epochs: int = 3
    batch_size: int = 32
    warmup_fraction: float = 0.1
    clip_norm: float = 1.0
    max_length: int = 128
    train_norms: bool = False
    seed: int = 0
    checkpoint_every: int = 50
    early_stop: bool = False
    label_smoothing: float = 0.0
    balanced_sampling: bool = False

    @property
    def rate(self) -> float:
        """The learning rate that was given or settled; else that of all tasks with a head of ours."""
        return RATE if self.learning_rate is None else self.learning_rate

    def __post_init__(self) -> None:
        rate = self.learning_rate
        _require(rate is None or rate > 0, "--learning-rate", "more than 0", rate)
        _require(self.head_rate > 0, "head_rate", "more than 0", self.head_rate)
        _require(self.epochs >= 0, "--epochs", "zero or more", self.epochs)
        _require(self.batch_size >= 1, "--batch-size", "at least 1", self.batch_size)
        _require(self.max_length >= 2, "--max-length", "at least 2", self.max_length)
        smoothing = self.label_smoothing
        _require(0 <= smoothing < 1, "--label-smoothing", "a share from 0 to below 1", smoothing)
        _require(0 <= self.seed < 2**32, "--seed", "0 to 4294967295", self.seed)


@dataclass(frozen=True)
class EngineConfig:
    """How a session is computed, where TrainConfig says what. None and "auto": planned from the model,
    the data, the processor and the budgets (training/plan.py has what came of it).

    precision: of the frozen base's products in training; the head's statistics, the merge and all
    checks stay in float32. micro_batch: samples at once; gradients add up to the batch's.
    checkpointing: activations are computed again in the backward pass instead of kept.
    prefix_cache: what is kept of the layers below the lowest adapter, so that they run once a session.
    adapt_depth: share of the layers, counted from the top, that may get adapters.
    device: of DEVICES; what is not "cpu" computes the model's passes and the optimiser's steps.
    """

    precision: Precision = "auto"
    micro_batch: int | None = None
    checkpointing: bool | None = None
    prefix_cache: PrefixCache = "auto"
    adapt_depth: float = 1.0
    device: str = "cpu"

    def __post_init__(self) -> None:
        size, depth, kept = self.micro_batch, self.adapt_depth, self.prefix_cache
        _require(size is None or size >= 1, "--micro-batch", "at least 1", size)
        _require(0 < depth <= 1, "--adapt-depth", "a share in (0, 1]", depth)
        _require(self.precision in PRECISIONS, "--precision", ", ".join(PRECISIONS), self.precision)
        _require(kept in PREFIX_CACHES, "--prefix-cache", ", ".join(PREFIX_CACHES), kept)
        known = re.fullmatch(r"cpu|cuda(:\d{1,3})?|mps|auto", self.device)
        _require(known is not None, "--device", DEVICES, self.device)


@dataclass(frozen=True)
class BudgetConfig:
    """Limits in bytes and seconds; None means no limit.

    head_bytes: of the features' second moments in the head's file; the label columns come on top.
    disk_bytes: of the workspace, with what a session needs while it runs.
    """

    history_bytes: int = 1_000_000
    anchor_bytes: int = 4_000_000
    ram_bytes: int | None = None
    time_seconds: float | None = None
    head_bytes: int = 16_000_000
    disk_bytes: int | None = None


@dataclass(frozen=True)
class EligibilityConfig:
    """When the device may learn; None and False: always. Nothing of a result depends on it.

    min_battery: percent. max_temperature: degrees Celsius. max_load: of a minute. min_free: bytes.
    """

    only_on_power: bool = False
    min_battery: float | None = None
    max_temperature: float | None = None
    max_load: float | None = None
    min_free: int | None = None

    def __post_init__(self) -> None:
        charge = self.min_battery
        _require(charge is None or 0 <= charge <= 100, "--min-battery", "0% to 100%", charge)


@dataclass(frozen=True)
class GateConfig:
    """Promotion rules. Fractions of accuracy (0.01 = one point); p below `significance` counts.

    max_onnx_abs_error: of an output of a float32 graph, torch against onnxruntime, in units of the
    targets' spread where outputs are values. max_onnx_rel_error: the same as a share of the largest
    output: float32 has seven digits, and a language model's logits reach 100. One of the two has to
    hold, and no prediction may differ (exporters/parity.py, also for other dtypes), forced or not.
    max_update: of a layer's update, relative to its base weights.
    """

    max_forgetting: float = 0.01
    significance: float = 0.05
    max_onnx_abs_error: float = 1e-4
    max_onnx_rel_error: float = 1e-5
    max_update: float = MAX_UPDATE
    force: bool = False

    def __post_init__(self) -> None:
        _require(0 <= self.max_forgetting <= 1, "--max-forgetting", "0 to 1", self.max_forgetting)


@dataclass(frozen=True)
class AdaptConfig:
    """Everything that one session of adaptation depends on, besides the model and the data."""

    lora: LoraConfig = field(default_factory=LoraConfig)
    stability: StabilityConfig = field(default_factory=StabilityConfig)
    merge: MergeRule = "constructive"
    head: HeadConfig = field(default_factory=HeadConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    gate: GateConfig = field(default_factory=GateConfig)

    def __post_init__(self) -> None:
        _require(self.merge in MERGE_RULES, "--merge", ", ".join(MERGE_RULES), self.merge)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def default_preset() -> AdaptConfig:
    """What measured best on the streams that docs/RESULTS.md lists."""
    return AdaptConfig()


def paper_preset() -> AdaptConfig:
    """The published method as its sources state it: L_s, Eq. 5 merge, a head trained by SGD."""
    return replace(
        AdaptConfig(),
        lora=LoraConfig(factors="float32"),
        stability=StabilityConfig(reading="product", row_stride=1, features=0.0, most_pull=None),
        merge="max_magnitude",
        head=HeadConfig(kind="linear", compete="all", transport=False, protect=False),
    )


def sequential_preset() -> AdaptConfig:
    """Plain sequential LoRA: no stability loss, no merge rule, a head trained by SGD."""
    return replace(
        AdaptConfig(),
        lora=LoraConfig(factors="float32"),
        stability=StabilityConfig(weight=0.0, features=0.0),
        merge="none",
        head=HeadConfig(kind="linear", compete="all", transport=False),
    )


PRESETS = {
    "default": default_preset,
    "paper": paper_preset,
    "sequential": sequential_preset,
}
