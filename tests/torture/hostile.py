"""Every kind of file that the tool reads, damaged and hostile: no death, no hang, one line each.

A row a format. Bad is a mutant that ended its process by a signal, took over ten seconds or more memory
than it may, answered by another exit code than 4 (or 2 for settings) or by more or less than one line,
ran code, unpickled, used the network, started a program or changed a file outside its folder; and one
that was taken for valid and is not finite.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from tests.command_kit import warm_command
from tests.export_kit import keep_what_is_loaded
from tests.torture.hostile_data import data_tasks, fork_checkers
from tests.torture.hostile_models import model_tasks
from tests.torture.hostile_seeds import Seeds, make_seeds
from tests.torture.mutant_runner import Outcome, Task, run_mutants, trim
from tests.torture.mutants import Mutant, mutants, no_files
from tests.torture.plan import Plan, Row

FULL, QUICK = 2000, 10
_OTHER_NAMES = (
    ".csv",
    ".npz",
    ".npy",
    ".jsonl",
    ".txt",
    ".parquet",
    ".pt",
    ".pkl",
    ".json",
    ".zip",
    "",
)


def run(plan: Plan) -> list[Row]:
    plan.scratch.chmod(0o755)
    for name in ("seeds", "outside"):
        (plan.scratch / name).mkdir(exist_ok=True)
    seeds = make_seeds(plan.scratch / "seeds")
    warm(seeds)
    rows, others = [], [*seeds.workspace.values(), seeds.delta, seeds.pt2]
    for task, made in tasks_of(seeds, plan):
        rng = random.Random(f"{plan.seed} {task.name}")
        rows.append(run_task(task, made(rng), others, rng, plan))
    return rows


def tasks_of(
    seeds: Seeds, plan: Plan
) -> Iterator[tuple[Task, Callable[[random.Random], Iterable[Mutant]]]]:
    """Every task, and what is forged for it."""
    count = plan.size(FULL, QUICK)
    for task, forged in data_tasks():
        yield task, lambda rng, forged=forged: forged(plan.quick)  # type: ignore[misc]
    for given in model_tasks(seeds):
        yield given.task, lambda rng, forged=given.forged: forged(rng, count)  # type: ignore[misc]


def run_task(
    task: Task, made: Iterable[Mutant], others: list[bytes], rng: random.Random, plan: Plan
) -> Row:
    """The valid file, and mutants of it."""
    count = plan.size(FULL, QUICK)
    content = task.files[task.target]
    chosen = list(made)
    special = [m for m in no_files(content, plan.scratch / "outside") for _ in (0, 1)]
    renamed = list(_renamed(task, content)) if task.argv is not None else []
    if plan.quick:
        chosen = rng.sample(chosen, min(len(chosen), count // 2))
        special = rng.sample(special, min(len(special), 6))
        others = []
        renamed = rng.sample(renamed, min(len(renamed), 3))
    chosen += special + renamed
    damaged = list(mutants(content, rng, max(count - len(chosen), count // 3), iter(others)))
    chosen += rng.sample(damaged, min(len(damaged), count)) if plan.quick else damaged
    outcomes = run_mutants(task, [Mutant("as it is", content), *chosen], plan.scratch / "run")
    return row_of(task.name, outcomes, count)


def _renamed(task: Task, content: bytes) -> Iterator[Mutant]:
    """The valid file under names that say something else."""
    target = Path(task.target)
    if "/" in task.target or task.name.startswith(("model.onnx", "config.")):
        return  # its name is part of its folder's layout
    for suffix in _OTHER_NAMES:
        if suffix != target.suffix:
            yield Mutant(f"named {suffix}", content, rename=f"{target.stem}{suffix}")
    for odd in ("a b", "ü", "x" * 200, "-x", "a;b", "$(a)", "a\nb", "\x1b[2Jx", "%s", "..x"):
        yield Mutant(f"named {odd!a}", content, rename=f"{odd}{target.suffix}")


def row_of(name: str, outcomes: list[Outcome], wanted: int) -> Row:
    """The valid file comes first; it must have been taken."""
    first, *rest = outcomes
    bad = [outcome for outcome in rest if outcome.problems]
    if not first.accepted or first.problems:
        bad.insert(
            0, Outcome(first.mutant, problems=[*first.problems, "the valid file was refused"])
        )
    deaths, slow = (sum(getattr(o, what) for o in rest) for what in ("died", "slow"))
    peak = max((o.peak for o in rest), default=0)
    taken = sum(o.accepted for o in rest)
    note = f"deaths {deaths}, over 10 s {slow}, most memory {peak >> 20} MiB, taken {taken}"
    if bad:
        note += f"; {bad[0].mutant}: {'; '.join(bad[0].problems)}"[:300]
    return Row(f"hostile: {name}", len(rest), len(bad), wanted=wanted, note=note)


def warm(seeds: Seeds) -> None:
    """Imports what readers import late, and puts forks in the place of the programs they start."""
    import edge_pslora.cli.main
    import edge_pslora.evaluation
    import edge_pslora.exporters.onnx_trial
    import edge_pslora.inspection.source
    import edge_pslora.merge_files
    import edge_pslora.pipeline.run
    import edge_pslora.update.replay  # noqa: F401

    warm_command()
    for name in (
        "PIL.Image",
        "pyarrow.parquet",
        "pyarrow.compute",
        "soundfile",
        "yaml",
        "transformers",
    ):
        __import__(name)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["RUST_BACKTRACE"] = "0"
    fork_checkers()
    _warm_torch(seeds)
    keep_what_is_loaded()
    trim()


def _warm_torch(seeds: Seeds) -> None:
    """torch generates code of its own the first time that it looks at a graph without computing it."""
    import contextlib
    import tempfile

    import torch

    from edge_pslora.errors import EdgePsloraError
    from edge_pslora.models.exported import open_exported
    from edge_pslora.models.pt2_module import too_large
    from tests.torture.forged_models import pt2_forged

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.pt2"
        for mutant in [Mutant("as it is", seeds.pt2), *pt2_forged(seeds.pt2)]:
            mutant.put(path)
            with contextlib.suppress(EdgePsloraError):
                too_large(open_exported(path)[1], torch.zeros(2, 2), 1 << 20)


def _plant(act: Callable[[Path], Any]) -> Callable[[], None]:
    """A fault in the reader of tables: `act` runs on the file first."""

    def plant() -> None:
        from edge_pslora.data import files

        real = files.READERS[".csv"]

        def faulty(path: Path, options: Any) -> Any:
            if b"\xff" in path.read_bytes() or not path.read_bytes():
                act(path)
            return real(path, options)

        files.READERS[".csv"] = faulty

    return plant


def _die(_: Path) -> None:
    os.kill(os.getpid(), 11)


def _hang(_: Path) -> None:
    time.sleep(1000)


def _eat(_: Path) -> None:
    len(b"x" * (400 << 20))


def _two_lines(_: Path) -> None:
    print("a line more", file=sys.stderr)


def _unpickle(_: Path) -> None:
    import _pickle

    _pickle.loads(b"\x80\x04cbuiltins\nlen\n.")


def _write_outside(path: Path) -> None:
    (path.parent.parent.parent / "elsewhere").write_bytes(b"x")


def _run_code(_: Path) -> None:
    exec(compile("1 + 1", "<data>", "exec"))


def _traceback(_: Path) -> None:
    raise KeyError("x")


PLANTS: dict[str, Callable[[], None]] = {
    "dies by a signal": _plant(_die),
    "hangs": _plant(_hang),
    "eats memory": _plant(_eat),
    "prints two lines": _plant(_two_lines),
    "unpickles": _plant(_unpickle),
    "writes outside": _plant(_write_outside),
    "runs code": _plant(_run_code),
    "raises anything": _plant(_traceback),
}
