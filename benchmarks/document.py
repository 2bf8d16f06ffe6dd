"""The measured parts of docs/results.md: each stands between two comment lines and is made from the lines.

    <!-- measured: means -->
    ...
    <!-- /measured -->

`make bench-report BENCH='--into docs/results.md --lines ...'` writes them; the rest is written by hand.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from benchmarks.suite.plan import key_of, keys_done, plan
from benchmarks.suite.streams import STREAMS
from edge_pslora.charts.types import Cell, Table
from edge_pslora.compare.markdown import markdown_table
from edge_pslora.compare.methods import METHODS
from edge_pslora.compare.overall import losses, overall, targets
from edge_pslora.compare.results import Result
from edge_pslora.compare.run import ScoredPart
from edge_pslora.compare.statistics import SIGNIFICANCE
from edge_pslora.compare.summary import StreamFigures
from edge_pslora.compare.tables import (
    ablation_table,
    loss_table,
    overall_table,
    streams_table,
    target_table,
)
from edge_pslora.errors import DataError

SEEDS = 5  # of the whole suite
AHEAD = 0.2  # points; what is ahead of the default by less is counted, not listed
VARIANTS = "our variants"
_BLOCK = re.compile(r"(<!-- measured: (.*?) -->\n).*?(<!-- /measured -->)", re.DOTALL)


def measured_blocks(
    results: Sequence[Result],
    streams: Sequence[StreamFigures],
    variants: Sequence[str],
    other_tasks: Collection[str],
) -> dict[str, str]:
    """Markdown by the name of the part. variants: keys of the ablation; other_tasks: no classification."""
    means = overall(streams)
    return {
        "runs": markdown_table(runs_table(results)),
        "targets": markdown_table(target_table(targets(streams, other_tasks))),
        "means": markdown_table(overall_table(means)),
        "streams": markdown_table(streams_table(streams, [m.key for m in means])),
        "ablation": markdown_table(ablation_table(streams, variants)),
        "losses": _losses(streams),
    }


def with_blocks(text: str, blocks: dict[str, str], path: Path) -> str:
    """The document with every measured part written again.

    Raises:
        DataError: it has other parts than `blocks`, or one of them twice.
    """
    names = [match[1] for match in _BLOCK.findall(text)]
    if sorted(names) != sorted(blocks):
        raise DataError(
            str(path),
            expected=f"the measured parts {', '.join(sorted(blocks))}, each once",
            found=", ".join(sorted(names)) or "none",
            remedy="mark them by the comment lines that benchmarks/document.py names",
        )
    return _BLOCK.sub(lambda m: f"{m[1]}\n{blocks[m[2]]}\n\n{m[3]}", text)


def runs_table(results: Sequence[Result], part: ScoredPart = "test") -> Table:
    """What of the whole suite, as it is now, these results are: methods with each number of seeds."""
    done = keys_done(results)
    rows = []
    total = [0, 0]
    for key, stream in STREAMS.items():
        groups = plan([stream], list(METHODS.values()), SEEDS, part)
        runs = [(m.key, key_of(group, m) in done) for group in groups for m in group.methods]
        seeds = [sum(run for method, run in runs if method == one) for one in dict(runs)]
        text = ", ".join(
            f"{seeds.count(n)} with {n}" for n in range(SEEDS, 0, -1) if seeds.count(n)
        )
        measured = sum(run for _, run in runs)
        total = [total[0] + measured, total[1] + len(runs)]
        rows.append(
            (
                Cell(key),
                Cell(f"{sum(n > 0 for n in seeds)} of {len(seeds)}"),
                Cell(text or "none"),
                Cell(f"{measured} of {len(runs)}", measured),
            )
        )
    every = f"{total[0]:,} of {total[1]:,}"
    rows.append((Cell("all"), Cell(""), Cell(""), Cell(every, total[0])))
    return Table(("stream", "methods", "seeds", "runs"), tuple(rows))


def _losses(streams: Sequence[StreamFigures]) -> str:
    found = [loss for loss in losses(streams) if loss.shown or loss.group != VARIANTS]
    listed = [x for x in found if x.shown or round(100 * x.difference.mean, 1) <= -AHEAD]
    alone = sum(x.alone is not None and x.alone < SIGNIFICANCE for x in found)
    text = (
        f"{sum(loss.shown for loss in listed)} shown by the corrected test, {alone} by the same test of "
        f"one method alone; {len(listed)} ahead by {AHEAD} points or more, {len(found) - len(listed)} "
        "by less. Our own variants are listed where it is shown only; the ablation has them all."
    )
    return f"{text}\n\n{markdown_table(loss_table(listed))}" if listed else text
