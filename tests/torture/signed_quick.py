"""One process for pytest: the section in its quick form, and then parts of it with each fault.

Prints {"": rows, "hash": rows, ...}. Each fault is planted in a child of its own, on the same bundles.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edge_pslora.workspace.durable import write_bytes
from tests.command_kit import warm_command
from tests.torture.plan import Plan
from tests.torture.signed import PARTS, PLANTS, count_parsers, scratch
from tests.torture.signed_world import World, make_world

# the parts of the section that a fault must make fail
CAUGHT_BY = {
    "hash": ("bundle.json", "payload", "lengths"),
    "threshold": ("metadata",),
    "counter": ("forged",),
    "floor": ("clocks",),
}


def main(folder: str) -> None:
    plan = Plan(True, Path(folder))
    warm_command()
    with scratch(plan.scratch) as place:
        world = make_world(place)
        count_parsers()
        faults = {"": tuple(PARTS), **CAUGHT_BY}
        print(json.dumps({fault: _rows(plan, world, fault, faults[fault]) for fault in faults}))


def _rows(plan: Plan, world: World, fault: str, parts: tuple[str, ...]) -> list[dict[str, Any]]:
    out = plan.scratch / f"rows-{fault}.json"
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if fault:
                PLANTS[fault]()
            rows = [row for part in parts for row in PARTS[part](plan, world)]
            content = [asdict(row) | {"met": row.met} for row in rows]
            write_bytes(out, json.dumps(content).encode())
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    found: list[dict[str, Any]] = json.loads(out.read_bytes()) if status == 0 else []
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
