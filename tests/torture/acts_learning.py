"""Scenes with real sessions: adapt, every export, patches and replays of ONNX files. They load torch."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

from edge_pslora.errors import EdgePsloraError
from edge_pslora.exporters.export import export_generation
from edge_pslora.exporters.export_options import ExportOptions
from tests.export_kit import keep_what_is_loaded, prepare_exports_once
from tests.pipeline import pipeline_kit as kit
from tests.torture.acts import Ends, Scene, Work, command, in_child, write_tree
from tests.torture.disk import Tree
from tests.workspace import merge_kit

# of a session made twice these differ: when it was made and how long it took; the pointer has their digest
LOOSE = ("manifest.json", "report.html", "w/current", "refusals.json")
FAST = ("--epochs", "2", "--batch-size", "16", "--seed", "3", "--json")
# when it was taken, and what the check took
APPLIED = ("w/updates/state.json", "manifest.json", "w/current")
DEPLOYED = "deployed/model.onnx"
_SIDE = ("deployed/labels.json", "deployed/export.json")


def learning_scenes(scratch: Path) -> list[Scene]:
    """scratch: where the sessions that they start from are made, once."""
    learned = _learned(scratch)

    def copied(*names: str, more: Callable[[Path], None] | None = None) -> Callable[[Path], None]:
        def build(folder: Path) -> None:
            for name in names:
                source, to = learned / name.split("=")[0], folder / name.split("=")[-1]
                if source.is_dir():
                    shutil.copytree(source, to)
                else:
                    shutil.copyfile(source, to)
            if more is not None:
                more(folder)

        return build

    w = {"workspace": "w"}
    session = {"loose": LOOSE, "grows": True, "slow": True}
    out = {"outputs": ("out",), "window": ("out",), **w}
    first = ("adapt", "first.npz", "--model", "auto", "--workspace")
    return [
        Scene(
            "adapt first",
            copied("first.npz"),
            command(*first, "new/place/w", *FAST),
            "new/place/w",
            **session,
        ),
        Scene(
            "adapt later",
            copied("one=w", "second.npz"),
            command("adapt", "second.npz", "--workspace", "w", *FAST),
            **w,
            **session,
        ),
        Scene(
            "adapt refused",
            copied("one=w", "bad.npz"),
            command("adapt", "bad.npz", "--workspace", "w", "--learning-rate", "0.02", *FAST),
            ends=3,
            loose=LOOSE,
            slow=True,
            **w,
        ),
        Scene(
            "adapt undone",
            copied("first.npz", more=_adapter),
            command(*first, "w", "--adapter", "one", *FAST),
            ends=4,
            slow=True,
            **w,
        ),
        *(
            Scene(
                f"export {form}",
                copied("w", more=_earlier(form)),
                _exported(form),
                **out,
            )
            for form in ("onnx", "safetensors", "peft", "delta")
        ),
        Scene(
            "export --patch",
            copied("w", more=_deployed()),
            command("export", "w", "--patch", DEPLOYED),
            outputs=(DEPLOYED, *_SIDE),
            **w,
        ),
        Scene(
            "export --patch, two files",
            copied("w", more=_deployed(external_data=True)),
            command("export", "w", "--patch", DEPLOYED),
            outputs=_SIDE,
            judges=(_one_model,),
            interim=("deployed/model.onnx_data",),
            **w,
        ),
        Scene(
            "replay --onnx",
            copied("w", more=_shipment),
            command(
                *("replay", "delta", "--base", "w/base", "--parent", "w/generations/000001"),
                *("--out", "next.safetensors", "--onnx", DEPLOYED),
            ),
            outputs=("next.safetensors", DEPLOYED),
            **w,
        ),
        *_updates(copied),
    ]


def _updates(copied: Callable[..., Callable[[Path], None]]) -> list[Scene]:
    """Signed updates of a device, taken without a look at its own samples."""

    def scene(name: str, bundle: str, device: tuple[str, ...], *more: str, ends: int = 0) -> Scene:
        build = copied(*device, f"bundle-{bundle}=bundle", "keys/root.json=root.json")
        argv = ("apply", "w", "--from", "bundle", *more)
        work, back = command(*argv), 2 if ends else None
        return Scene(f"apply {name}", build, work, "w", ends=ends, loose=APPLIED, meanwhile=back)

    had = ("device=w",)
    at_once = ("--health-interval", "0s", "--health-check")
    return [
        scene("first", "1", (), "--root", "root.json", "--no-check"),
        scene("full", "full", had, "--no-check"),
        scene("delta", "delta", had, "--no-check"),
        scene("on trial", "full", had, *at_once, "true"),
        scene("and back", "delta", had, *at_once, "false", ends=3),
    ]


def _learned(scratch: Path) -> Path:
    """first.npz, second.npz and bad.npz; `one`, a workspace after one session; `w` after two.

    Made in children, after one in this process, which is warm then: a session costs a second.
    """
    folder = scratch / "learned"
    folder.mkdir()
    prepare_exports_once()
    first = kit.digits_npz(folder / "first.npz", (0, 1, 2), 120)
    second = kit.digits_npz(folder / "second.npz", (3, 4), 100)
    x, y = kit.digits((0, 1, 2), 120)
    kit.write_npz(folder / "bad.npz", x.reshape(len(x), -1), (y + 1) % 3)
    argv = ("--workspace", str(folder / "w"), *FAST[:-1], "--quiet")
    # an uninteresting session first: everything is imported before the first fork
    warm = ("adapt", str(first), "--model", "auto", "--workspace", str(folder / "warm"))
    with redirect_stdout(io.StringIO()):
        assert command(*warm, *FAST[:-1], "--quiet")() == 0
        keep_what_is_loaded()
        assert in_child(command("adapt", str(first), "--model", "auto", *argv)) == 0
        shutil.copytree(folder / "w", folder / "one")
        assert in_child(command("adapt", str(second), *argv)) == 0
        _bundles(folder)
    return folder


def _bundles(folder: Path) -> None:
    """Keys, bundles of both generations, and a device that took the first."""
    signed = ("--key", "keys/key-1.pem", "--key", "keys/key-2.pem", "--root", "keys/root.json")
    first = ("--generation", "1", "--counter", "1", "--kind", "full", "--with-base")
    for argv in (
        ("keys", "init", "keys"),
        ("bundle", "w", "bundle-1", *signed, *first),
        ("bundle", "w", "bundle-full", *signed, "--kind", "full", "--counter", "2"),
        ("bundle", "w", "bundle-delta", *signed, "--kind", "delta", "--counter", "2"),
        ("apply", "device", "--from", "bundle-1", "--root", "keys/root.json", "--no-check"),
    ):

        def work(argv: tuple[str, ...] = argv) -> int:
            os.chdir(folder)
            return command(*argv)()

        assert in_child(work) == 0, argv


def _adapter(folder: Path) -> None:
    """One that fits no layer of the model."""
    merge_kit.make_adapter(folder / "one", merge_kit.factors(0))


def _exported(form: str) -> Work:
    return command("export", "w", "out", "--overwrite", "--format", form)


def _earlier(form: str) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        options = ExportOptions(form)  # type: ignore[arg-type]
        export_generation(folder / "w", folder / "out", options, generation=1)

    return build


def _deployed(**more: bool) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        options = ExportOptions("onnx", **more)
        export_generation(folder / "w", folder / "deployed", options, generation=1)

    return build


def _shipment(folder: Path) -> None:
    export_generation(folder / "w", folder / "delta", ExportOptions("delta"))
    _deployed()(folder)


def _one_model(folder: Path, scene: Scene, tree: Tree, ends: Ends, reported: bool) -> str | None:
    """The deployed model refers to weights of its own: as one file it is the old one or the new one."""
    try:
        now = _as_one_file(folder)
    except EdgePsloraError as error:
        return str(error)
    found = {}
    for name, end in (("old", ends.before), ("new", ends.after)):
        place = folder.with_name(f"{scene.name}-{name}")
        if not place.exists():
            place.mkdir()
            write_tree(place, {n: c for n, c in end.items() if n.startswith("deployed")})
        found[name] = _as_one_file(place)
    if now not in ([found["new"]] if reported else found.values()):
        return "the deployed model is neither the old one nor the new one"
    data = "deployed/model.onnx_data"
    if reported and tree.get(data) != ends.after[data]:
        return "the deployed model's data are not under their usual name"
    return None


def _as_one_file(folder: Path) -> object:
    from edge_pslora.exporters import onnx_file
    from edge_pslora.exporters.onnx_read import open_model

    with open_model(folder / DEPLOYED) as file:
        return onnx_file.digests(onnx_file.plan(file.model, file.sizes, None), file.weights)
