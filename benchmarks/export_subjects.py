"""What `make bench-export` exports: small real workspaces, made by the command as a user would."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.places import EXAMPLES
from benchmarks.streams import pacs, text
from benchmarks.streams.command import edge_pslora
from benchmarks.streams.plan import Cut, Plan
from edge_pslora.workspace import layout


@dataclass(frozen=True)
class Subject:
    """A workspace of two generations or more. imports: folders that a factory comes from.

    data: whose test part measures what an export costs; None: the samples that the workspace keeps.
    """

    name: str
    workspace: Path
    data: Path | None = None
    imports: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Size:
    """Most samples of a session to train on, and to test with."""

    train: int
    test: int


Prepare = Callable[[Path, Size], Subject]


def demo(work: Path, size: Size) -> Subject:
    """The bundled digits with the built-in network, as `edge-pslora demo` makes it."""
    out = work / "demo"
    facts = edge_pslora(["demo", "--out", str(out)])
    return Subject("demo", Path(facts["files"][layout.MODEL]).parents[2])


def minilm(work: Path, size: Size) -> Subject:
    """MiniLM-L6 on dbpedia, then Amazon reviews; rank 8 on query and value."""
    plan = text.prepare(work / "minilm-data", Cut(size.train, size.test, sessions=2))
    return _learned("minilm", plan, work, ("--target", "*.query", "--target", "*.value"))


def mobilenet(work: Path, size: Size) -> Subject:
    """MobileNetV1 on photos, then paintings, of seven things."""
    plan = pacs.prepare(work / "mobilenet-data", Cut(size.train, size.test, sessions=2))
    return _learned("mobilenet", plan, work)


SUBJECTS: Mapping[str, Prepare] = {"demo": demo, "minilm": minilm, "mobilenet": mobilenet}


def _learned(name: str, plan: Plan, work: Path, options: tuple[str, ...] = ()) -> Subject:
    """Two sessions of the plan; --force: what is measured here is the export, not the learning."""
    workspace = work / name
    for number, session in enumerate(plan.sessions):
        arguments = ["adapt", str(session.data), "--workspace", str(workspace), "--force"]
        arguments += ["--task", session.name, *plan.read, *plan.train, *options]
        if number == 0:
            arguments += ["--model", plan.model, *plan.first]
        edge_pslora(arguments, (EXAMPLES, *plan.imports))
    return Subject(name, workspace, plan.sessions[-1].data, (EXAMPLES, *plan.imports))
