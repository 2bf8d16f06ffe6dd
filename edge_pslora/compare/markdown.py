"""The tables of docs/results.md."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from edge_pslora.charts.types import Table
from edge_pslora.compare.overall import losses, overall, targets
from edge_pslora.compare.summary import StreamFigures
from edge_pslora.compare.tables import (
    Sources,
    ablation_table,
    accuracy_table,
    cost_table,
    loss_table,
    overall_table,
    streams_table,
    target_table,
)

READING = (
    "Accuracies are means over the runs (a run is one order with one seed), in brackets the 95 % interval "
    "(Student's t). Gap closed: of the gap between sequential LoRA and the best joint training, with "
    "Fieller's interval. “Default is”: our default against that method, run by run (paired "
    "t-test, Holm's correction over the methods of the stream and setting, 5 %); “not shown” does "
    "not mean equal. p alone: the same test without the correction. Effect d: mean difference over its "
    "standard deviation. Learning: accuracy just after learning; backward, forward: transfer, in points; "
    "METHOD.md has their definitions."
)


def results_markdown(
    streams: Sequence[StreamFigures],
    sources: Sources,
    ablations: Sequence[str],
    command: Callable[[StreamFigures], str],
    other_tasks: Collection[str] = (),
    titles: Mapping[str, str] | None = None,
) -> str:
    """What the page has and one table of all, as Markdown; command: what measures a stream again."""
    parts = [_sources(sources), READING]
    parts += ["## Targets", markdown_table(target_table(targets(streams, other_tasks)))]
    means = overall(streams)
    parts += ["## All streams", markdown_table(overall_table(means))]
    parts += [
        "## Every method on every stream",
        markdown_table(streams_table(streams, [m.key for m in means])),
    ]
    parts += ["## Where it loses", _losses(streams)]
    parts += ["## Ablation of every part", _ablation(streams, ablations)]
    for s in streams:
        about = _about(s, (titles or {}).get(s.stream, ""))
        parts += [f"## {_escaped(s.name)}", about, f"    {command(s)}"]
        parts += [markdown_table(accuracy_table(s)), markdown_table(cost_table(s))]
    return "\n\n".join(parts) + "\n"


def _sources(sources: Sources) -> str:
    facts = [
        f"{sources.lines} results of {sources.dates}",
        "machine: " + "; ".join(sources.machines),
        "versions: " + "; ".join(sources.versions),
        "commit: " + (", ".join(sources.commits) or "unknown"),
    ]
    return ". ".join(facts) + f". All of it:\n\n    {sources.command}"


def _about(s: StreamFigures, title: str) -> str:
    text = f"{len(s.tasks)} tasks, {len(s.orders)} order(s), {len(s.seeds)} seed(s)."
    if title:
        text = f"{_escaped(title)}: {text}"
    notes = [f"Note: {note}." for note in s.notes]
    return " ".join([text, *notes, "One line of it: add --methods KEY to BENCH."])


def _losses(streams: Sequence[StreamFigures]) -> str:
    found = losses(streams)
    if not found:
        return "No method but joint training has a higher mean on any stream."
    return (
        "Every method with a higher mean than our default's, the shown ones first.\n\n"
        + markdown_table(loss_table(found))
    )


def _ablation(streams: Sequence[StreamFigures], keys: Sequence[str]) -> str:
    table = ablation_table(streams, keys)
    if not table.rows:
        return "No variant was measured."
    return (
        "Variant less default, in points; * where the corrected test shows it.\n\n"
        + markdown_table(table)
    )


def markdown_table(table: Table) -> str:
    """Pipes; whatever Markdown would read in a cell is escaped."""
    head = "| " + " | ".join(_escaped(name) or " " for name in table.header) + " |"
    lines = [head, "|" + "---|" * len(table.header)]
    for row in table.rows:
        lines.append("| " + " | ".join(_escaped(cell.text) for cell in row) + " |")
    return "\n".join(lines)


def _escaped(text: str) -> str:
    flat = " ".join(text.split())
    return "".join(f"\\{c}" if c in "\\|`*_<[" else c for c in flat)
