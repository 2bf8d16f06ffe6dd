"""Caltech-101 by classes with MobileNetV1: ten sessions of ten or eleven new classes each."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.places import data_path, unpack
from benchmarks.streams.files import divided, link_files, shuffled
from benchmarks.streams.main import main
from benchmarks.streams.pictures import mobilenet_plan
from benchmarks.streams.plan import Cut, Plan, StreamScript

SESSIONS = 10


def prepare(work: Path, cut: Cut) -> Plan:
    """One folder a session; what the cut allows is shared out equally among its classes."""
    root = unpack(data_path("caltech101-64.tar")) / "caltech101"
    classes = sorted(folder for folder in root.iterdir() if folder.is_dir())
    groups = np.array_split(shuffled(len(classes), cut), SESSIONS)[: cut.sessions]
    names, folders = [], []
    for number, group in enumerate(groups, start=1):
        share = replace(cut, train=_share(cut.train, group), test=_share(cut.test, group))
        parts: dict[str, list[Path]] = {"train": [], "test": []}
        for index in group:
            train, test = divided(sorted(classes[index].glob("*.jpg")), share)
            parts["train"] += train
            parts["test"] += test
        names.append(f"classes {number}")
        folders.append(link_files(work / f"{number:02}", parts))
    title = "Caltech-101 by classes with MobileNetV1"
    return mobilenet_plan("caltech", title, "class-incremental", names, folders)


def _share(most: int | None, group: np.ndarray[tuple[int], np.dtype[np.int64]]) -> int | None:
    return None if most is None else max(1, most // len(group))


STREAM = StreamScript("caltech", Cut(330, 220), prepare)

if __name__ == "__main__":
    sys.exit(main(STREAM))
