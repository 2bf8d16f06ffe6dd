"""Plants each fault of the section `hostile` in turn, and prints what the section says of a few mutants."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from edge_pslora.data import files
from tests.command_kit import warm_command
from tests.torture.hostile import PLANTS, row_of
from tests.torture.hostile_data import CSV, data_tasks
from tests.torture.mutant_runner import run_mutants
from tests.torture.mutants import Mutant

SECONDS = 3.0  # instead of ten, so that what hangs is found sooner
MUTANTS = (
    Mutant("as it is", CSV),
    Mutant("cut", CSV[:20]),
    Mutant("other bytes", CSV + b"\xff\n"),
    Mutant("empty"),
    Mutant("repeated", CSV * 2),
)


def main() -> int:
    task = next(task for task, _ in data_tasks() if task.name == "csv")
    found = {}
    warm_command()  # before the first fork
    with tempfile.TemporaryDirectory(prefix="torture-faults-") as folder:
        Path(folder).chmod(0o755)
        for name, plant in {"none": lambda: None, **PLANTS}.items():
            readers = dict(files.READERS)
            plant()
            some = MUTANTS[:3] if name == "hangs" else MUTANTS  # once is enough to wait for
            outcomes = run_mutants(task, some, Path(folder) / "run" / "of", SECONDS)
            files.READERS.update(readers)
            row = row_of(name, outcomes, len(some) - 1)
            found[name] = {"met": row.met, "note": row.note}
    sys.stdout.write(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
