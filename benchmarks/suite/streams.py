"""The streams of the suite: what each is, its settings, its orders and its budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from benchmarks.streams.tiny_language import SIZES
from benchmarks.suite import picture_streams, sensor_streams, text_streams
from benchmarks.suite.budget import Budget, Draw
from edge_pslora.compare.stream import Setting, Stream
from edge_pslora.config import AdaptConfig
from edge_pslora.training.rate import language_rate

# what the long order is affordable for: fourteen tasks cost a run two minutes
LONG = (
    *("sequential", "sequential+analytic", "frozen", "pslora", "pslora-neither", "paper", "joint"),
    *("joint+pslora", "average", "ewc", "lwf", "olora", "magmax", "replay", "ranpac"),
)


@dataclass(frozen=True)
class SuiteStream:
    """orders: how many it has; the run of a seed takes order seed mod orders (1: one, or drawn by the
    seed). only: keys of methods, where not all are affordable. also: see Stream. language: nothing
    has a label, and no method with a head is for it."""

    key: str
    title: str
    load: Callable[[Draw], Stream]
    budget: Budget
    orders: int = 1
    also: tuple[Setting, ...] = ()
    only: tuple[str, ...] = ()
    language: bool = False

    def config(self) -> AdaptConfig:
        """The product's defaults for this kind of task, within the budget."""
        config = self.budget.config()
        if not self.language:
            return config
        rate = language_rate(SIZES["hidden_size"])
        return replace(config, train=replace(config.train, learning_rate=rate))


_TASKS: tuple[Setting, ...] = ("task-incremental",)
_ALL = (
    SuiteStream(
        "text4",
        "text order 1: four tasks, MiniLM-L6",
        text_streams.four,
        Budget(112, 28, 56, size=64),
        orders=3,
        also=_TASKS,
    ),
    SuiteStream(
        "text14",
        "long text order: fourteen tasks, MiniLM-L6",
        text_streams.fourteen,
        Budget(64, 16, 32, size=64),
        orders=3,
        also=_TASKS,
        only=LONG,
    ),
    SuiteStream(
        "pacs",
        "PACS by domain, MobileNetV1",
        picture_streams.pacs,
        Budget(240, 60, 100, size=64),
        orders=3,
    ),
    SuiteStream(
        "caltech101",
        "Caltech-101 by classes, MobileNetV1",
        picture_streams.caltech,
        Budget(160, 40, 60, size=64),
    ),
    SuiteStream(
        "cifar10",
        "CIFAR-10 by classes, MobileNetV1",
        picture_streams.cifar10,
        Budget(200, 50, 100, size=64),
    ),
    SuiteStream(
        "activity",
        "activity from phone and watch, person after person",
        sensor_streams.activity,
        Budget(240, 60, 100, tasks=10),
    ),
    SuiteStream(
        "gas", "ageing gas sensors, batch after batch", sensor_streams.gas, Budget(320, 80, 150)
    ),
    SuiteStream(
        "heart",
        "heart disease, hospital after hospital",
        sensor_streams.heart,
        Budget(320, 80, 150, epochs=4),
        orders=3,
    ),
    SuiteStream(
        "digits",
        "spoken digits, speaker after speaker",
        sensor_streams.digits,
        Budget(320, 80, 50),
        orders=3,
    ),
    SuiteStream(
        "language",
        "language model, two domains: token accuracy",
        text_streams.language,
        Budget(320, 80, 100, size=64),
        orders=2,
        language=True,
    ),
)

STREAMS: dict[str, SuiteStream] = {stream.key: stream for stream in _ALL}
QUICK_STREAMS = ("pacs", "cifar10", "gas", "heart")


def quick(stream: SuiteStream) -> SuiteStream:
    """The same with a third of the samples of a task."""
    budget = stream.budget
    sizes = {name: max(8, getattr(budget, name) // 3) for name in ("train", "valid", "test")}
    return replace(stream, budget=replace(budget, **sizes))
