"""`edge-pslora compare`: methods on the user's own sequence of data."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_pslora.compare.extra import require_statistics
from edge_pslora.compare.method import Method
from edge_pslora.compare.methods import choose
from edge_pslora.compare.own_data import own_stream, read_own
from edge_pslora.compare.recommend import recommendation
from edge_pslora.compare.results import Result, append
from edge_pslora.compare.run import run
from edge_pslora.config import AdaptConfig
from edge_pslora.data.options import ReadOptions
from edge_pslora.errors import UsageError
from edge_pslora.models.load import ModelOptions
from edge_pslora.progress import Progress, SilentProgress
from edge_pslora.workspace.durable import make_folders

HOLDOUT = 0.2


@dataclass(frozen=True)
class Comparison:
    """sentence: what to use. rejected: rows of the data that could not be read."""

    results: tuple[Result, ...]
    sentence: str
    setting: str
    tasks: tuple[str, ...]
    samples: tuple[int, ...]
    rejected: int


def compare(
    data: Sequence[Path],
    methods: Sequence[str],
    model: str,
    *,
    weights: Path | None = None,
    config: AdaptConfig,
    read: ReadOptions,
    model_options: ModelOptions,
    seeds: int = 1,
    holdout: float = HOLDOUT,
    out: Path | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Every method learns the sessions one after the other, with every seed; nothing is published.

    seeds: each has its own split (where data has no test part) and its own order of samples. out: a
    file that each result is appended to as it comes.

    Raises:
        UsageError: unknown methods, one that is not for this kind of task, or no scipy for several
            seeds. DataError, ModelError: data or model cannot be used.
    """
    chosen = choose(methods)
    if seeds > 1:
        require_statistics()
    own = read_own(data, read)
    _require_fit(chosen, own.task_type)
    if not any(not m.joint and not m.stores_samples for m in chosen):
        raise UsageError(
            "--methods",
            expected="a method among them that keeps no training samples, to be recommended",
            found=", ".join(m.key for m in chosen),
            remedy="add pslora or frozen",
        )
    if out is not None:
        make_folders(out.absolute().parent)
    progress = progress or SilentProgress()
    results: list[Result] = []
    facts = {**own.facts(), "model": Path(model).name, "holdout": holdout}
    for seed in range(seeds):
        with tempfile.TemporaryDirectory(prefix="edge-pslora-compare-") as folder:
            base = Path(folder)
            stream = own_stream(own, model, weights, model_options, base, holdout, seed)
            for method in chosen:
                count = 1 if method.joint else len(stream.tasks)
                progress.start(f"{method.key}, seed {seed}", count)
                found = run(
                    method,
                    stream,
                    config,
                    seed,
                    facts=facts,
                    on_session=lambda name, row: progress.advance(1, name),
                )
                progress.finish()
                results += found
                if out is not None:
                    for result in found:
                        append(out, result)
    return Comparison(
        tuple(results),
        recommendation(results),
        stream.setting,
        tuple(task.name for task in stream.tasks),
        tuple(len(task.train.targets) for task in stream.tasks),
        own.rejected,
    )


def _require_fit(methods: Sequence[Method], task_type: str) -> None:
    unfit = [m.key for m in methods if m.needs_head and task_type == "language"]
    if unfit:
        raise UsageError(
            "--methods",
            expected="methods for language models, which have no head of ours",
            found=", ".join(unfit),
            remedy="leave them out",
        )
