"""Commands to torture: what is there before each, and what may be there after it was cut off.

Each scene works in a folder of its own, its paths relative to it, so that the same command runs in any
copy. `.said/out` in that folder is the command's stdout: what it reported, and when.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edge_pslora.errors import EdgePsloraError
from edge_pslora.workspace import layout
from edge_pslora.workspace.workspace import Workspace
from tests.torture.disk import Content, Tree

SAID = ".said/out"
Work = Callable[[], int]
# (folder, scene, its tree, ends, whether the end was reported) -> what is wrong, or None
Judge = Callable[[Path, "Scene", Tree, "Ends", bool], str | None]


@dataclass(frozen=True)
class Scene:
    """build: puts what is there before into an empty folder. work: runs in that folder.

    workspace: its path, None where the scene has none. outputs: files and folders outside of it, each
    old or new as a whole; window: those that may be gone for a moment. loose: names (at their ends)
    of files whose bytes differ from run to run. ends: the exit code of an uninterrupted run. grows: a
    second run makes another generation. judges: what else must hold. interim: beginnings of names that
    may be there until it is done. slow: it takes seconds, so fewer cases are tried. meanwhile: a
    generation that may serve until it is done.
    """

    name: str
    build: Callable[[Path], None]
    work: Work
    workspace: str | None = None
    outputs: tuple[str, ...] = ()
    window: tuple[str, ...] = ()
    loose: tuple[str, ...] = ()
    ends: int = 0
    grows: bool = False
    judges: tuple[Judge, ...] = ()
    interim: tuple[str, ...] = ()
    slow: bool = False
    meanwhile: int | None = None

    def prepare(self, folder: Path) -> None:
        """`folder`, made new, holds what is there before."""
        remove(folder)
        (folder / SAID).parent.mkdir(parents=True)
        self.build(folder)


def command(*argv: str) -> Work:
    """The real command line."""

    def work() -> int:
        from edge_pslora.cli.main import main

        return main(argv)

    return work


def perform(
    scene: Scene,
    folder: Path,
    errors: Path,
    said: Path | None = None,
    limited: Callable[[], None] | None = None,
) -> int:
    """The scene's work, in this process: a child made for it. Its exit code.

    errors: gets stderr. said: gets stdout. limited: called just before the work.
    """
    os.chdir(folder)
    sys.stdout.flush()
    sys.stderr.flush()
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    os.dup2(os.open(SAID if said is None else said, flags), 1)
    os.dup2(os.open(errors, flags), 2)
    if limited is not None:
        limited()
    code = scene.work()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def in_child(work: Work) -> int:
    """Its exit code, or minus the signal's number."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            code = work()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def read_tree(folder: Path) -> dict[str, Content]:
    """All that is in a folder."""
    found: dict[str, Content] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = str(path.readlink())
        else:
            found[name] = path.read_bytes() if path.is_file() else None
    return found


def write_tree(folder: Path, tree: Tree, known: Tree | None = None) -> None:
    """Makes `folder` that tree. known: what is there already, empty if nothing."""
    known = known or {}
    for name in sorted(known, reverse=True):
        if (
            name not in tree
            or type(tree[name]) is not type(known[name])
            or isinstance(known[name], str)
        ):
            path = folder / name
            path.rmdir() if known[name] is None else path.unlink()
            known = {n: c for n, c in known.items() if n != name}
    for name in sorted(tree):
        content = tree[name]
        if name in known and known[name] == content:
            continue
        if content is None:
            (folder / name).mkdir()
        elif isinstance(content, str):
            (folder / name).symlink_to(content)
        else:
            (folder / name).write_bytes(content)


def restore(folder: Path, tree: Tree) -> None:
    """`folder`, made new, is that tree."""
    remove(folder)
    folder.mkdir()
    write_tree(folder, tree)


def below(tree: Tree, path: str) -> dict[str, Content]:
    """What is at a path and under it, by names relative to it."""
    return {n[len(path) :]: c for n, c in tree.items() if n == path or n.startswith(f"{path}/")}


def serving(folder: Path, scene: Scene) -> int | None:
    """The number of the generation that serves; None where there is no workspace or nothing in it."""
    path = folder / (scene.workspace or "")
    if scene.workspace is None or not Workspace.exists(path):
        return None
    current = Workspace.open(path).current()
    return None if current is None else current.number


@dataclass(frozen=True)
class Ends:
    """The two states that a scene may end in, and the generation that serves in each."""

    before: Tree
    after: Tree
    old: int | None
    new: int | None


def problem(
    folder: Path, scene: Scene, tree: Tree, ends: Ends, *, reported: bool, same_run: bool = True
) -> str | None:
    """What is wrong in `folder`, which holds `tree`; None if nothing is.

    reported: the command said that it was done, so only its end will do. same_run: the run that
    `ends` is of; another one's `loose` files have other bytes.
    """
    if scene.workspace is not None:
        loose = () if same_run else scene.loose
        found = _workspace_problem(folder, scene, tree, ends, loose, reported=reported)
        if found is not None:
            return found
    for name in scene.outputs:
        now, old, new = (below(t, name) for t in (tree, ends.before, ends.after))
        gone = not now and (not old or name in scene.window)
        if not (now == new or (not reported and (now == old or gone))):
            return (
                f"{name}: neither old nor new" if now != old else f"{name}: not there as reported"
            )
    for judge in scene.judges:
        wrong = judge(folder, scene, tree, ends, reported)
        if wrong is not None:
            return wrong
    return _strangers(scene, tree, ends)


def _workspace_problem(
    folder: Path,
    scene: Scene,
    tree: Tree,
    ends: Ends,
    loose: tuple[str, ...],
    *,
    reported: bool,
) -> str | None:
    assert scene.workspace is not None
    path = folder / scene.workspace
    if not Workspace.exists(path):
        there = f"{scene.workspace}/{layout.WORKSPACE_FILE}" in ends.before
        should = f"{scene.workspace}/{layout.WORKSPACE_FILE}" in ends.after
        return "the workspace is gone" if (there and should) or (reported and should) else None
    try:
        opened = Workspace.open(path)
        damage = opened.status(verify=True)["damage"]
        current = opened.current()
    except EdgePsloraError as error:
        return str(error)
    if damage:
        return str(damage[0])
    number = None if current is None else current.number
    if number not in (
        {ends.new} if reported else {ends.old, ends.new, scene.meanwhile or ends.new}
    ):
        return f"generation {number} serves; before {ends.old}, after {ends.new}"
    known = {**_generations(scene, ends.before), **_generations(scene, ends.after)}
    for name, content in _generations(scene, tree).items() if known else ():
        if known.get(name, b"") != content and not name.endswith(loose):
            return f"{name}: not what was published"
    missing = _generations(scene, ends.before).keys() - tree.keys()
    if missing:
        return f"{min(missing)}: lost"
    return None


def _generations(scene: Scene, tree: Tree) -> dict[str, Content]:
    """Published files, and those of the base."""
    parts = (f"{scene.workspace}/{layout.GENERATIONS}/", f"{scene.workspace}/{layout.BASE}/")
    return {name: content for name, content in tree.items() if name.startswith(parts)}


def _strangers(scene: Scene, tree: Tree, ends: Ends) -> str | None:
    """Visible names that belong neither to the old state nor to the new one."""
    for name in tree:
        parts = name.split("/")
        home = f"{scene.workspace}/"
        inside = scene.workspace is not None and (
            name.startswith(home) or home.startswith(f"{name}/")
        )
        hidden = any(part.startswith(".") for part in parts) or name.startswith(scene.interim)
        if not (inside or hidden or name in ends.before or name in ends.after):
            return f"{name}: nobody asked for it"
    return None


def grown(folder: Path, scene: Scene) -> str | None:
    """What is wrong after a run that made one generation more."""
    assert scene.workspace is not None
    status = Workspace.open(folder / scene.workspace).status(verify=True)
    return next(iter([*status["damage"], *status["warnings"]]), None)


def finished(scene: Scene, folder: Path, errors: Path, ends: Ends) -> str | None:
    """Runs the scene again in `folder`; what tells its end from that of an uninterrupted run, or None."""
    done = scene.grows and serving(folder, scene) == ends.new
    code = in_child(lambda: perform(scene, folder, errors))
    if code != scene.ends:
        return f"exit code {code}: {errors.read_text()[:200]}"
    if done:
        return grown(folder, scene)
    tree = read_tree(folder)
    wrong = problem(folder, scene, tree, ends, reported=True, same_run=False)
    if (
        scene.workspace is not None
        and scene.workspace not in ends.after
        and scene.workspace in tree
    ):
        return (
            wrong  # it was whole before this run began: whoever finds a workspace leaves it there
        )
    return wrong or settled(scene, tree, ends)


def settled(scene: Scene, tree: Tree, ends: Ends) -> str | None:
    """What tells a folder from the one in which an uninterrupted run ended; None if nothing does."""
    now, wanted = _compared(scene, tree), _compared(scene, ends.after)
    if now.keys() != wanted.keys():
        return f"left over or missing: {', '.join(sorted(now.keys() ^ wanted.keys())[:3])}"
    for name, content in wanted.items():
        if now[name] != content and not name.endswith(scene.loose):
            return f"{name}: other bytes than an uninterrupted run leaves"
    return None


def _compared(scene: Scene, tree: Tree) -> dict[str, Content]:
    ignored = {SAID, f"{scene.workspace}/{layout.LOCK}"}
    ignored.add(scene.workspace or "")  # whoever finds an empty folder leaves it as it is
    return {name: content for name, content in tree.items() if name not in ignored}


def remove(folder: Path) -> None:
    with suppress(FileNotFoundError):
        shutil.rmtree(folder)
