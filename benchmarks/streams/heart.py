"""Heart disease, hospital after hospital: grades 0 to 4 from 13 figures, with the built-in network."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.places import data_path
from benchmarks.streams.files import divided, write_tables
from benchmarks.streams.main import main
from benchmarks.streams.plan import Cut, Plan, StreamScript, paired

HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")


def prepare(work: Path, cut: Cut) -> Plan:
    """One folder a hospital, seven tenths to train on."""
    names, folders = HOSPITALS[: cut.sessions], []
    for name in names:
        lines = data_path(f"tables/heart_processed.{name}.data").read_text().splitlines()
        rows = [line.split(",") for line in lines]
        train, test = divided(rows[1:], cut)
        folders.append(write_tables(work / name, rows[0], {"train": train, "test": test}))
    sessions, tests = paired(names, folders)
    return Plan(
        name="heart",
        title="heart disease at four hospitals",
        setting="domain-incremental",
        model="auto",
        sessions=sessions,
        tests=tests,
        read=("--missing=-9",),
        train=("--task-type", "classification"),
        keep_testing=True,
    )


STREAM = StreamScript("heart", Cut(None, None), prepare)

if __name__ == "__main__":
    sys.exit(main(STREAM))
