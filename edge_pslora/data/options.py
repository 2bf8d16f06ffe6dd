"""How the user wants a DATA argument to be read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

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
    feature_columns: the feature columns, by name or index; empty: all but the label.
    ignore_columns: columns that are neither.
    task_type: None infers it from the labels.
    missing: numbers that mean "missing", e.g. -9 (tables and two-dimensional arrays).
    max_bad_fraction: more unreadable rows than this fraction end the run.
    image_pixels_max: largest width * height that is decoded.
    audio_seconds_max: longest recording that is taken.
    min_classes: fewest distinct labels of a classification set.
    max_bytes: most bytes that one file may fill once it is decoded; what does not fit into a small
        share of the memory goes to a temporary file.
    decode: False looks only at the first bytes of pictures and recordings and makes no digest, to
        describe a folder quickly; what is trained on must have been decoded.
    passage_characters: longest passage that plain text is cut into.
    window_seconds: cut sensor recordings into windows of this length; None: no recordings.
    hop_seconds: from one window's start to the next's; None: as long as a window.
    rate_hz: readings per second after resampling; None: the recordings' own, rounded.
    time_column: of a recording; None: a column named time, timestamp, ...
    time_unit: of it, s, ms, us or ns; None: seen from the steps.
    group_column: rows of different groups (persons, runs) never share a window.
    keep_duplicates: leave rows that come twice in the training part.
    keep_samples: descriptions of rows that were set aside may quote them.
    """

    label_column: str | None = None
    text_column: str | None = None
    feature_columns: tuple[str, ...] = ()
    ignore_columns: tuple[str, ...] = ()
    task_type: TaskType | None = None
    missing: tuple[float, ...] = ()
    max_bad_fraction: float = 0.10
    image_pixels_max: int = 25_000_000
    audio_seconds_max: float = 600.0
    min_classes: int = 1
    max_bytes: int = 1 << 33
    decode: bool = True
    passage_characters: int = 400
    window_seconds: float | None = None
    hop_seconds: float | None = None
    rate_hz: float | None = None
    time_column: str | None = None
    time_unit: Literal["s", "ms", "us", "ns"] | None = None
    group_column: str | None = None
    keep_duplicates: bool = False
    keep_samples: bool = True

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
        seconds = self.audio_seconds_max
        _require(0 < seconds <= 86_400, "audio_seconds_max", "up to a day", seconds)
        _require(self.min_classes >= 1, "min_classes", "1 or more", self.min_classes)
        _require(self.max_bytes >= 1, "max_bytes", "1 or more", self.max_bytes)
        _require(
            self.passage_characters >= 20,
            "passage_characters",
            "20 or more",
            self.passage_characters,
        )
        self._check_windows()

    def _check_windows(self) -> None:
        for value, flag in (
            (self.window_seconds, "--window"),
            (self.hop_seconds, "--hop"),
            (self.rate_hz, "--rate"),
        ):
            _require(value is None or 0 < value < math.inf, flag, "more than 0", value)
        if self.window_seconds is None:
            for given, flag in (
                (self.hop_seconds, "--hop"),
                (self.rate_hz, "--rate"),
                (self.time_column, "--time-column"),
                (self.time_unit, "--time-unit"),
                (self.group_column, "--group-column"),
            ):
                _require(given is None, flag, "a --window beside it", given)
