"""Cutting real data into one folder a session, each with a train and a test part."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from benchmarks.streams.plan import Cut
from edge_pslora.errors import DataError

T = TypeVar("T")

PARTS = ("train", "test")


def shuffled(count: int, cut: Cut) -> list[int]:
    """The numbers below `count` in an order that the seed decides."""
    return np.random.default_rng(cut.seed).permutation(count).tolist()


def divided(items: Sequence[T], cut: Cut, test_share: float = 0.3) -> tuple[list[T], list[T]]:
    """(train, test), disjoint and at random: at most as many as the cut allows, `test_share` of all
    at most for the test."""
    order = [items[i] for i in shuffled(len(items), cut)]
    held = max(1, min(round(len(items) * test_share), cut.test or len(items)))
    train, test = order[held:][: cut.train], order[:held]
    if not train:
        raise DataError(
            "stream",
            expected="samples to train on and to test with",
            found=f"{len(items)} in all",
            remedy="give the whole data set",
        )
    return train, test


def write_texts(folder: Path, rows: Mapping[str, Iterable[Mapping[str, object]]]) -> Path:
    """folder/train.jsonl and test.jsonl."""
    folder.mkdir(parents=True)
    for part in PARTS:
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows[part])
        (folder / f"{part}.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def write_tables(
    folder: Path, header: Sequence[str], rows: Mapping[str, Iterable[Sequence[str]]]
) -> Path:
    """folder/train.csv and test.csv."""
    folder.mkdir(parents=True)
    for part in PARTS:
        with (folder / f"{part}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([header, *rows[part]])
    return folder


def link_files(folder: Path, files: Mapping[str, Iterable[Path]]) -> Path:
    """folder/train/CLASS/NAME and test likewise, CLASS being the folder that a file lies in.

    Hard links where the file system has them, else copies.
    """
    for part in PARTS:
        for file in files[part]:
            target = folder / part / file.parent.name / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(file, target)
            except OSError:
                shutil.copyfile(file, target)
    return folder


def read_texts(path: Path) -> list[dict[str, object]]:
    """The rows of a .jsonl."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
