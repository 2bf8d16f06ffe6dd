"""Parkinson's disease, patient after patient: the UPDRS score (a quantity) from recordings of a voice."""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
from pathlib import Path

from benchmarks.places import data_path
from benchmarks.streams.files import divided, write_tables
from benchmarks.streams.main import main
from benchmarks.streams.plan import Cut, Plan, Session, StreamScript, Test

PATIENT, TARGET = "subject#", "total_UPDRS"
# motor_UPDRS is a part of the target
LEFT_OUT = (PATIENT, "motor_UPDRS")
GROUP = 7  # patients in a test


def prepare(work: Path, cut: Cut) -> Plan:
    """One folder a patient, and tests of seven patients each.

    A patient's score hardly varies, so that R2 says something only over several of them.
    """
    with data_path("tables/parkinsons_updrs.tsv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file, delimiter="\t")
    patient = header.index(PATIENT)
    kept = [i for i, name in enumerate(header) if name not in LEFT_OUT]
    of_patient: dict[int, list[list[str]]] = defaultdict(list)
    for row in rows:
        of_patient[int(row[patient])].append([row[i] for i in kept])
    names = [header[i] for i in kept]
    sessions: list[Session] = []
    tests: list[Test] = []
    held: list[list[str]] = []
    patients = sorted(of_patient)[: cut.sessions]
    for number, key in enumerate(patients):
        train, test = divided(of_patient[key], cut)
        held += test
        folder = write_tables(work / f"{key:02}", names, {"train": train, "test": test})
        sessions.append(Session(f"patient {key}", folder))
        if (number + 1) % GROUP == 0 or number + 1 == len(patients):
            first = number // GROUP * GROUP
            name = f"patients {patients[first]} to {key}"
            folder = write_tables(work / f"test-{key:02}", names, {"train": held, "test": held})
            tests.append(Test(name, folder, number))
            held = []
    return Plan(
        name="parkinsons",
        title="Parkinson's disease, patient after patient",
        setting="domain-incremental, regression",
        model="auto",
        sessions=tuple(sessions),
        tests=tuple(tests),
        read=("--label-column", TARGET),
        train=("--task-type", "regression"),
    )


STREAM = StreamScript("parkinsons", Cut(None, None), prepare)

if __name__ == "__main__":
    sys.exit(main(STREAM))
