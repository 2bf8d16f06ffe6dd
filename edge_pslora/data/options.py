"""How the user wants a DATA argument to be read."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edge_pslora.config import TASK_TYPES, TaskType
from edge_pslora.errors import UsageError


def _require(condition: bool, where: str, expected: str, found: object) -> None:
    if not condition:
        raise UsageError(where, expected=expected, found=repr(found), remedy="change the option")


@dataclass(frozen=True)
class ReadOptions:
    """Options shared by all readers; a reader ignores those that do not concern its format.

    label_column: name, or 0-based index ("0", "-1"), of the label; None: a column named label,
        target, class or y, else the last one (JSON lines: "label").
    text_column: name or index of the text; None: "text". A .csv with such a column is text data.
    task_type: None infers it from the labels.
    missing: numbers that mean "missing", e.g. -9 (tables and two-dimensional arrays).
    max_bad_fraction: more unreadable rows than this fraction end the run.
    image_pixels_max: largest width * height that is decoded.
    min_classes: fewest distinct labels of a classification set.
    max_bytes: most bytes that one decoded file may fill in memory.
    decode: False looks only at the first bytes of pictures and recordings and makes no digest, to
        describe a folder quickly; what is trained on must have been decoded.
    """

    label_column: str | None = None
    text_column: str | None = None
    task_type: TaskType | None = None
    missing: tuple[float, ...] = ()
    max_bad_fraction: float = 0.10
    image_pixels_max: int = 25_000_000
    min_classes: int = 1
    max_bytes: int = 1 << 30
    decode: bool = True

    def __post_init__(self) -> None:
        _require(
            self.task_type is None or self.task_type in TASK_TYPES,
            "--task-type",
            " or ".join(TASK_TYPES),
            self.task_type,
        )
        _require(all(map(math.isfinite, self.missing)), "--missing", "numbers", self.missing)
        _require(
            0 <= self.max_bad_fraction <= 1, "max_bad_fraction", "0 to 1", self.max_bad_fraction
        )
        _require(self.image_pixels_max >= 1, "image_pixels_max", "1 or more", self.image_pixels_max)
        _require(self.min_classes >= 1, "min_classes", "1 or more", self.min_classes)
        _require(self.max_bytes >= 1, "max_bytes", "1 or more", self.max_bytes)
