"""How much of a stream is used, and how a task is parted."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from benchmarks.stream_loaders import some
from edge_pslora.compare.stream import Part, Setting
from edge_pslora.config import AdaptConfig, default_preset
from edge_pslora.data.split import split
from edge_pslora.data.types import Samples
from edge_pslora.errors import DataError, UsageError


@dataclass(frozen=True)
class Budget:
    """Most samples of a task to train on, to choose by and to test with; passes over the first.

    size: pixels of a picture's side, tokens of a text; 0: the model's own. tasks: 0: all. valid: 0: none.
    """

    train: int
    valid: int
    test: int
    epochs: int = 2
    batch: int = 16
    size: int = 0
    tasks: int = 0

    def facts(self) -> dict[str, Any]:
        """What a result depends on, for its digest."""
        return {"budget": asdict(self)}

    def config(self) -> AdaptConfig:
        """The product's defaults within this budget."""
        default = default_preset()
        train = replace(default.train, epochs=self.epochs, batch_size=self.batch)
        return replace(default, train=train)


@dataclass(frozen=True)
class Draw:
    """One stream as it is loaded: seed of splits and base; order; empty folders for base and data."""

    seed: int
    order: int
    base: Path
    work: Path
    budget: Budget
    also: tuple[Setting, ...] = ()


def part_within(name: str, train: Samples, test: Samples, draw: Draw) -> Part:
    """The parts of one task: training and validation part are cut from `train`, class by class.

    Raises:
        DataError: a part has no sample.
    """
    budget = draw.budget
    most = some(train, draw.seed, budget.train + budget.valid)
    rest, valid = split(most, budget.valid / (budget.train + budget.valid), draw.seed)
    kept = valid if budget.valid else None
    part = Part(name, rest, some(test, draw.seed, budget.test), kept)
    if min(len(part.train), len(part.test), *([len(valid)] if budget.valid else [])) == 0:
        raise DataError(
            name,
            expected="samples to train on, to choose by and to test with",
            found=f"{len(part.train)}, {len(valid)} and {len(part.test)}",
            remedy="give the whole data set",
        )
    return part


def changed(budget: Budget, change: str) -> Budget:
    """The budget with what `change` says, as in "train=2000,test=500".

    Raises:
        UsageError: a name that a budget does not have, or no whole number.
    """
    names = [field.name for field in fields(Budget)]
    values: dict[str, int] = {}
    for item in change.split(","):
        name, _, value = item.partition("=")
        if name not in names or not value.isdecimal():
            raise UsageError(
                "--budget",
                expected=f"NAME=NUMBER,..., of {', '.join(names)}",
                found=item,
                remedy="change the option",
            )
        values[name] = int(value)
    return replace(budget, **values)
