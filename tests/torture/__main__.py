"""Runs sections, each in a process of its own, prints the table, writes benchmarks/out/torture.json."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from benchmarks.machine import commit, machine, now
from edge_pslora.workspace.durable import write_bytes
from tests.command_kit import warm_command
from tests.torture.forked import in_processes
from tests.torture.plan import Plan, Row, Section, format_rows
from tests.torture.sections import SECTIONS, load_section

OUT = Path(__file__).resolve().parents[2] / "benchmarks" / "out"


def main() -> int:
    arguments = _parser().parse_args()
    warm_command()
    if arguments.with_plants:
        return _with_plants(arguments)
    if arguments.rows is not None:
        return _one(arguments)
    names = arguments.sections or list(SECTIONS)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        results = list(pool.map(lambda name: _in_process(name, arguments), names))
    rows = [row for found, _ in results for row in found]
    seconds = {name: round(took, 1) for name, (_, took) in zip(names, results, strict=True)}
    print(format_rows(rows))
    print(f"seconds: {', '.join(f'{name} {took}' for name, took in seconds.items())}")
    failed = [name for name, (found, _) in zip(names, results, strict=True) if not found]
    if failed:
        print(f"ended without a table: {', '.join(failed)}")
    if set(names) >= set(SECTIONS) and arguments.plant is None:
        OUT.mkdir(parents=True, exist_ok=True)
        content = {
            "machine": machine(),
            "date": now(),
            "commit": commit(),
            "quick": arguments.quick,
            "seconds": seconds,
            "rows": [asdict(row) | {"met": row.met} for row in rows],
        }
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
        write_bytes(OUT / "torture.json", text.encode() + b"\n")
    return 0 if not failed and all(row.met for row in rows) else 1


def _one(arguments: argparse.Namespace) -> int:
    """This process is the section's own; its rows go to a file."""
    (name,) = arguments.sections
    section = load_section(name)
    if arguments.plant is not None:
        section.PLANTS[arguments.plant]()
    with tempfile.TemporaryDirectory(prefix=f"torture-{name}-") as folder:
        rows = section.run(Plan(arguments.quick, Path(folder), arguments.seed))
    text = json.dumps([asdict(row) for row in rows], allow_nan=False)
    write_bytes(arguments.rows.absolute(), text.encode())
    return 0 if all(row.met for row in rows) else 1


def _with_plants(arguments: argparse.Namespace) -> int:
    """Each section without and with each of its faults, forked from one process; rows to the file.

    {section: {fault, or "" for none: rows}}
    """
    from tests.export_kit import prepare_exports_once
    from tests.torture.kill_scenes import Materials

    prepare_exports_once()
    found: dict[str, dict[str, list[dict[str, object]]]] = {}
    with tempfile.TemporaryDirectory(prefix="torture-") as text:
        folder = Path(text)
        shared = folder / "shared"
        Materials(shared).make()
        for name in arguments.sections:
            section = load_section(name)
            for fault in ("", *section.PLANTS):
                scratch = Path(tempfile.mkdtemp(dir=folder))

                def work(
                    section: Section = section, fault: str = fault, at: Path = scratch
                ) -> list[Row]:
                    if fault:
                        section.PLANTS[fault]()
                    return section.run(Plan(arguments.quick, at, arguments.seed, shared))

                rows = in_processes([work], scratch)
                found.setdefault(name, {})[fault] = [asdict(row) | {"met": row.met} for row in rows]
    write_bytes(arguments.rows.absolute(), json.dumps(found, allow_nan=False).encode())
    return 0


def _in_process(name: str, arguments: argparse.Namespace) -> tuple[list[Row], float]:
    """The rows of a section and its seconds; no rows if it died."""
    command = [sys.executable, "-m", "tests.torture", name, "--seed", str(arguments.seed)]
    command += ["--quick"] if arguments.quick else []
    command += ["--plant", arguments.plant] if arguments.plant is not None else []
    # one thread: forked processes must not inherit a pool whose threads are gone
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.json"
        subprocess.run([*command, "--rows", str(rows)], env=environment, check=False)
        found = json.loads(rows.read_text()) if rows.exists() else []
    made, took = [Row(**row) for row in found], time.monotonic() - began
    print(f"{name}: {took:.0f} s", *_missed(made), sep="\n  ", file=sys.stderr, flush=True)
    return made, took


def _missed(rows: list[Row]) -> list[str]:
    return [f"NOT MET: {r.what}: {r.bad:g} of {r.cases}: {r.note}" for r in rows if not r.met]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", choices=[*SECTIONS, []])
    parser.add_argument("--quick", action="store_true", help="the form that make test runs")
    parser.add_argument("--plant", metavar="FAULT", help="a fault that the section must catch")
    parser.add_argument("--with-plants", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
