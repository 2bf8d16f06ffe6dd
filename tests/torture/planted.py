"""A section's quick form, and again with each of its faults, each in a fork of one warm process.

    python -m tests.torture.planted SECTION

prints one JSON object: by the fault's name ("" for none) whether all rows were met, and their notes.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.command_kit import warm_command
from tests.torture.plan import Plan
from tests.torture.sections import load_section


def main(name: str) -> None:
    section = load_section(name)
    warm_command()
    found = {"": _fork(name, None)}
    for fault, plant in section.PLANTS.items():
        found[fault] = _fork(name, plant)
    json.dump(found, sys.stdout)


def _fork(name: str, plant: Callable[[], None] | None) -> dict[str, object]:
    with tempfile.TemporaryDirectory(prefix=f"planted-{name}-") as folder:
        out = Path(folder) / "rows.json"
        child = os.fork()
        if child == 0:
            code = 70
            try:
                _run(name, plant, Path(folder), out)
                code = 0
            finally:
                if code:  # the child ends here: nobody else would say why
                    traceback.print_exc()
                    sys.stderr.flush()
                os._exit(code)
        os.waitpid(child, 0)
        if not out.exists():
            return {"met": None, "notes": ["the section died"]}
        rows: dict[str, object] = json.loads(out.read_text())
        return rows


def _run(name: str, plant: Callable[[], None] | None, folder: Path, out: Path) -> None:
    (folder / "scratch").mkdir()
    section = load_section(name)
    if plant is not None:
        plant()
    rows = section.run(Plan(True, folder / "scratch"))
    notes = [f"{row.what}: {row.note}" for row in rows if not row.met]
    out.write_text(json.dumps({"met": not notes, "notes": notes}))


if __name__ == "__main__":
    main(sys.argv[1])
