"""What a stream is: sessions to learn from, tests to be passed, and the options of the commands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Session:
    """One `adapt`. data: its DATA argument."""

    name: str
    data: Path


@dataclass(frozen=True)
class Test:
    """One `eval`. data: its DATA argument. learned: number (from 0) of the session after which the
    model has seen all that the test asks for."""

    __test__ = False  # pytest: this is no class of tests

    name: str
    data: Path
    learned: int


@dataclass(frozen=True)
class Plan:
    """A stream, with its data lying ready.

    setting: task-, class- or domain-incremental. model: of the first session. read: options of
    adapt and eval that say how DATA is read. first, train: options of the first adapt, and of each.
    keep_testing: whether all earlier tests are run after every session, or at the end only.
    imports: folders from which a factory is imported.
    """

    name: str
    title: str
    setting: str
    model: str
    sessions: tuple[Session, ...]
    tests: tuple[Test, ...]
    read: tuple[str, ...] = ()
    first: tuple[str, ...] = ()
    train: tuple[str, ...] = ()
    keep_testing: bool = False
    imports: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Cut:
    """How much of the data is used. train, test: most samples of a session; None: all."""

    train: int | None
    test: int | None
    sessions: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class StreamScript:
    """A script of this folder: `prepare` writes the sessions into a folder."""

    name: str
    cut: Cut
    prepare: Callable[[Path, Cut], Plan]


def paired(
    names: Sequence[str], folders: Sequence[Path]
) -> tuple[tuple[Session, ...], tuple[Test, ...]]:
    """Sessions and tests of folders that hold a train and a test part each."""
    sessions = tuple(Session(n, folder) for n, folder in zip(names, folders, strict=True))
    tests = tuple(Test(s.name, s.data, i) for i, s in enumerate(sessions))
    return sessions, tests
