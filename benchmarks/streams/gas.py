"""Gas sensors that age: six gases from 128 features, batch after batch over three years."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from benchmarks.places import data_path
from benchmarks.streams.files import divided, write_tables
from benchmarks.streams.main import main
from benchmarks.streams.plan import Cut, Plan, StreamScript, paired
from edge_pslora.errors import DataError

BATCHES = (1, 2, 3, 4, 5, 6, 8, 9)  # those at hand
FEATURES = 128


def prepare(work: Path, cut: Cut) -> Plan:
    """One folder a batch. A row is gas, concentration, 128 features; the concentration is left out:
    a sensor does not know it."""
    names, folders = [f"batch {n}" for n in BATCHES][: cut.sessions], []
    header = ["gas", *(f"sensor {1 + i // 8}, {1 + i % 8}" for i in range(FEATURES))]
    for number, _ in zip(BATCHES, names, strict=False):
        path = data_path(f"tables/gas_batch{number}.csv")
        with path.open(encoding="utf-8", newline="") as file:
            rows = [[row[0], *row[2:]] for row in csv.reader(file)]
        if any(len(row) != 1 + FEATURES for row in rows):
            raise DataError(
                str(path),
                expected=f"a gas, its concentration and {FEATURES} features in each row",
                found="another number of columns",
                remedy="fetch the file again",
            )
        train, test = divided(rows, cut)
        folders.append(write_tables(work / f"{number:02}", header, {"train": train, "test": test}))
    sessions, tests = paired(names, folders)
    return Plan(
        name="gas",
        title="drifting gas sensors",
        setting="domain-incremental",
        model="auto",
        sessions=sessions,
        tests=tests,
        read=("--label-column", "gas"),
        keep_testing=True,
    )


STREAM = StreamScript("gas", Cut(None, None), prepare)

if __name__ == "__main__":
    sys.exit(main(STREAM))
