"""The commands that are killed, each with the folder that it starts from.

A scene's folder holds a workspace `w` and what else the command reads or replaces; the command runs
there with relative names, so that two runs of it leave equal bytes.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_pslora.cli.main import main
from edge_pslora.errors import EdgePsloraError
from edge_pslora.workspace.durable import make_folder
from edge_pslora.workspace.lock import writer_lock
from edge_pslora.workspace.manifest import Manifest
from edge_pslora.workspace.tensors import write_tensors
from edge_pslora.workspace.workspace import Workspace

# 54 steps: one checkpoint of the training loop is written
SMALL = ("--epochs", "3", "--batch-size", "2", "--rank", "2", "--json")
# what says when and how fast it was made
DATED = frozenset({"manifest.json", "report.html", "current", "refusals.json"})


@dataclass(frozen=True)
class Scene:
    """start: copied for each run. code: the exit code. call: in place of a command line.

    learns: run again after its end it makes another generation. dated: names of files that differ
    from run to run. between: generations that may serve before the end, on trial. deployed: an ONNX
    file in one or two parts that is replaced. most_kills: so many in a row, and the next run ends as
    the first would have.
    """

    name: str
    start: Path
    argv: tuple[str, ...] = ()
    code: int = 0
    call: Callable[[], int] | None = None
    learns: bool = False
    dated: frozenset[str] = frozenset()
    deployed: str | None = None
    most_kills: int = 3
    between: tuple[int, ...] = ()

    def run(self, folder: Path) -> tuple[int, str]:
        """Exit code, and what was printed."""
        printed = io.StringIO()
        os.chdir(folder)
        try:
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                code = main(self.argv) if self.call is None else _called(self.call)
        finally:
            os.chdir("/")
        return code, printed.getvalue()

    def copied(self, folder: Path) -> Path:
        return Path(shutil.copytree(self.start, folder))


def _called(call: Callable[[], int]) -> int:
    """As the command line does it: an error is printed, and is an exit code."""
    try:
        return call()
    except EdgePsloraError as problem:
        print(problem)
        return problem.exit_code


@dataclass(frozen=True)
class Materials:
    """What scenes start from: folders with a workspace of one session and of two, data, exports."""

    root: Path

    @property
    def ready(self) -> bool:
        return (self.root / "ready").exists()

    def make(self) -> None:
        """Two real sessions and what is exported of them. Loads torch."""
        from tests.export_kit import keep_what_is_loaded, prepare_exports_once
        from tests.torture import kill_scenes_apply

        prepare_exports_once()
        self.root.mkdir(parents=True)
        for number, flipped in enumerate((False, False, True), start=1):
            _write_data(self.root / f"{number}.npz", number, flipped=flipped)
        for number in (1, 2):
            model = ("--model", "auto") if number == 1 else ()
            self._run("adapt", f"{number}.npz", *model, "--workspace", "w", *SMALL)
            shutil.copytree(self.root / "w", self.root / f"after-{number}")
        for number in (1, 2):
            for name, more in {"one": (), "two": ("--external-data",)}.items():
                out = f"{name}-{number}"
                self._run(
                    "export", "w", out, "--format", "onnx", "--generation", str(number), *more
                )
        self._run("export", "w", "delta", "--format", "delta")
        kill_scenes_apply.make(self._run)
        keep_what_is_loaded()
        (self.root / "ready").touch()

    def _run(self, *argv: str) -> None:
        code, printed = Scene("", self.root, argv).run(self.root)
        if code != 0:
            raise AssertionError(f"{' '.join(argv)}: {printed}")

    def start(self, name: str, parts: Mapping[str, str]) -> Path:
        """A folder with copies: its name for each part -> the material's."""
        folder = self.root / "starts" / name
        if not folder.exists():
            folder.mkdir(parents=True)
            for target, source in parts.items():
                found = self.root / source
                copy = shutil.copytree if found.is_dir() else shutil.copy
                copy(found, folder / target)
        return folder


def learning_scenes(made: Materials) -> list[Scene]:
    """Those that load torch."""

    def scene(name: str, parts: dict[str, str], *argv: str, code: int = 0) -> Scene:
        start = made.start(name, parts)
        return Scene(name, start, argv, code, learns=code == 0, dated=DATED)

    second = ("--workspace", "w", *SMALL)
    return [
        scene("adapt, first", {"d.npz": "1.npz"}, "adapt", "d.npz", "--model", "auto", *second),
        scene("adapt, later", {"d.npz": "2.npz", "w": "after-1"}, "adapt", "d.npz", *second),
        scene(
            "adapt, refused",
            {"d.npz": "3.npz", "w": "after-2"},
            *("adapt", "d.npz", *second, "--batch-size", "64", "--epochs", "1"),
            code=3,
        ),
    ]


def light_scenes(made: Materials) -> list[Scene]:
    """Those that a device without torch runs."""

    def scene(name: str, parts: dict[str, str], *argv: str, **more: object) -> Scene:
        return Scene(name, made.start(name, parts), argv, **more)  # type: ignore[arg-type]

    w = {"w": "after-2"}
    generations = "w/generations"
    replay = ("replay", "delta", "--base", "w/base", "--parent", f"{generations}/000001")
    replay = (*replay, "--out", "out.safetensors")
    patch = ("export", "w", "--patch", "deployed/model.onnx")
    scenes = [
        scene("promote", w, call=_promote, learns=True),
        scene("refuse", w, call=_refuse),
        scene("rollback", w, "rollback", "w", "--to", "1"),
        scene(
            "merge",
            {**w, "out.safetensors": "w/base/model.safetensors"},
            *("merge", f"{generations}/000001/adapter", f"{generations}/000002/adapter"),
            *("--base", "w/base", "--out", "out.safetensors"),
        ),
        scene("replay", {**w, "delta": "delta"}, *replay),
    ]
    for form in ("onnx", "safetensors", "peft", "delta"):
        argv = ("export", "w", "out", "--format", form, "--overwrite")
        scenes.append(scene(f"export {form}", w, *argv))
    overwritten = ("export", "w", "out", "--format", "onnx", "--overwrite")
    scenes.append(scene("export, overwritten", {**w, "out": "one-1"}, *overwritten))
    for files in ("one", "two"):
        parts = {**w, "deployed": f"{files}-1"}
        deployed = "deployed/model.onnx"
        scenes.append(scene(f"export --patch, {files}", parts, *patch, deployed=deployed))
        parts["delta"] = "delta"
        onnx = (*replay, "--onnx", deployed)
        scenes.append(scene(f"replay --onnx, {files}", parts, *onnx, deployed=deployed))
    return scenes


def _write_data(path: Path, seed: int, *, flipped: bool) -> None:
    """Rows [N, 3] of two classes; flipped: many, with the wrong label."""
    rng = np.random.default_rng(seed)
    n = 400 if flipped else 60
    rows = rng.normal(size=(n, 3)).astype(np.float32)
    labels = ((rows[:, 0] > 0) != flipped).astype(np.int64)
    np.savez(path, x=rows, y=labels)


def _promote() -> int:
    """A session that was learned elsewhere: recover, or begin, fill and publish."""
    path = Path("w")
    with writer_lock(path):
        opened = Workspace.open(path)
        if opened.recover("promote") is None:
            staged = opened.begin("promote")
            _fill(staged.folder, staged.number)
            opened.publish(staged.folder, _manifest(opened, staged.number))
    return 0


def _refuse() -> int:
    path = Path("w")
    with writer_lock(path):
        opened = Workspace.open(path)
        staged = opened.begin("refuse")
        _fill(staged.folder, staged.number)
        opened.refuse(staged.folder)
    return 0


def _fill(folder: Path, number: int) -> None:
    make_folder(folder / "adapter")
    tensors = {"w": np.full(8, number, np.float32)}
    for name in ("model.safetensors", "history.safetensors", "adapter/adapter_model.safetensors"):
        write_tensors(folder / name, tensors, {"value": str(number)})


def _manifest(opened: Workspace, number: int) -> Manifest:
    current = opened.current()
    return Manifest(
        number=number,
        parent=None if current is None else current.number,
        task="t",
        created="2026-01-02T03:04:05Z",
        data_digest="",
        base_digest=opened.header.base_digest,
        labels=opened.labels(),
        counter=number,
    )
