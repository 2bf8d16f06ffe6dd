"""`make bench-report`: the suite's lines as one page, as tables, and as those of docs/results.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.document import measured_blocks, with_blocks
from benchmarks.places import OUT
from benchmarks.suite.streams import STREAMS
from edge_pslora.charts.extra import can_draw
from edge_pslora.compare.extra import require_statistics
from edge_pslora.compare.markdown import results_markdown
from edge_pslora.compare.methods import METHODS
from edge_pslora.compare.page import comparison_page
from edge_pslora.compare.results import Result, read
from edge_pslora.compare.summary import DEFAULT, StreamFigures, summarised
from edge_pslora.compare.tables import Sources
from edge_pslora.errors import DataError, EdgePsloraError
from edge_pslora.pages.workspace import NO_DRAWINGS
from edge_pslora.workspace.durable import make_folders, write_bytes

FULL, QUICK = "suite.jsonl", "suite-quick.jsonl"
PAGE, TABLES = "report.html", "results.md"
OTHER_TASKS = tuple(key for key, stream in STREAMS.items() if stream.language)
OURS = tuple(
    key
    for key, method in METHODS.items()
    if method.paper == "this project" or key.startswith(("pslora", "paper"))
)
VARIANTS = tuple(key for key in OURS if key != DEFAULT)


def main(arguments: Sequence[str] | None = None, *, out: Path = OUT) -> int:
    """Writes both; returns the exit code: 0, or that of the error (4: no lines)."""
    options = _parser().parse_args(arguments)
    paths = options.lines or [out / (FULL if (out / FULL).exists() else QUICK)]
    try:
        require_statistics()
        results = [result for path in paths for result in _lines(path, options.part)]
        streams = figures_of(results, options.part)
        suite = "make bench-quick" if paths[0].name == QUICK else "make bench-suite"
        sources = sources_of(results, suite)
        titles = {key: stream.title for key, stream in STREAMS.items()}
        page = comparison_page(streams, sources, VARIANTS, OTHER_TASKS, titles)
        tables = results_markdown(
            streams,
            sources,
            VARIANTS,
            lambda stream: f"{suite} BENCH='--streams {stream.stream}'",
            OTHER_TASKS,
            titles,
        )
        make_folders(out)
        write_bytes(out / PAGE, page.encode())
        write_bytes(out / TABLES, tables.encode())
        if options.into is not None:
            blocks = measured_blocks(results, streams, VARIANTS, OTHER_TASKS)
            text = with_blocks(_text(options.into), blocks, options.into)
            write_bytes(options.into, text.encode())
    except EdgePsloraError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if not can_draw():
        print(f"note: {NO_DRAWINGS}", file=sys.stderr)
    print(
        f"read: {', '.join(map(str, paths))}, {len(results)} results, {len(streams)} streams and settings"
    )
    print(f"written: {out / PAGE}")
    for path in filter(None, (out / TABLES, options.into)):
        print(f"written: {path}")
    return 0


def figures_of(results: Sequence[Result], part: str = "test") -> tuple[StreamFigures, ...]:
    """Stream after stream, with every method's name."""
    names = {key: method.name for key, method in METHODS.items()}
    return summarised(results, names, part=part, ours=lambda key: key in OURS)


def sources_of(results: Sequence[Result], command: str) -> Sources:
    """Dates, machines, versions and commits of the lines, each once."""
    dates = sorted({r.date[:10] for r in results})
    return Sources(
        lines=len(results),
        dates=dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}",
        machines=tuple(
            dict.fromkeys(f"{r.machine['cpu']}, {r.machine['cores']} cores" for r in results)
        ),
        versions=tuple(
            dict.fromkeys(", ".join(f"{k} {v}" for k, v in r.versions.items()) for r in results)
        ),
        commits=tuple(sorted({r.commit[:12] for r in results if r.commit})),
        command=command,
    )


def _lines(path: Path, part: str) -> list[Result]:
    results = [r for r in read(path) if r.part == part]
    if not results:
        raise DataError(
            str(path),
            expected=f"lines of the suite, scored on the {part} part",
            found="none" if path.exists() else "no such file",
            remedy="run make bench-quick or make bench-suite first, or give --lines FILE",
        )
    return results


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            str(path),
            expected="a document with measured parts (benchmarks/document.py)",
            found=str(error),
            remedy="give --into docs/results.md",
        ) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report")
    parser.add_argument(
        "--lines",
        type=Path,
        nargs="+",
        metavar="FILE",
        help=f".gz too; default: {FULL} in benchmarks/out, or {QUICK} where there is none",
    )
    parser.add_argument(
        "--into", type=Path, metavar="DOCUMENT", help="write its measured parts again, too"
    )
    parser.add_argument(
        "--part", choices=("test", "valid"), default="test", help="which part they were scored on"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
