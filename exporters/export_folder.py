"""The folder of an export: made under another name, published in one step, replaced if ours."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge_pslora.errors import EdgePsloraError, UsageError
from edge_pslora.workspace import durable, strict_json

RECORD = "export.json"


@contextmanager
def published_folder(out: Path, workspace: Path, *, overwrite: bool) -> Iterator[Path]:
    """A new folder to fill; when the block ends without an error it becomes `out`.

    Raises:
        UsageError: `out` is no folder, is in use, or lies inside the workspace.
    """
    out = out.absolute()
    _check_place(out, workspace)
    staged = out.with_name(f".{out.name}.edge-pslora-new")
    old = out.with_name(f".{out.name}.edge-pslora-old")
    with durable.storage_errors(out.parent, out.name):
        if old.exists() and not out.exists():  # killed between its two renames
            durable.rename_durably(old, out)
        for leftover in (staged, old):  # of a killed export
            if leftover.exists():
                shutil.rmtree(leftover)
    _check_content(out, overwrite)
    with durable.storage_errors(out.parent, out.name):
        staged.mkdir()
    try:
        yield staged
        with durable.storage_errors(out.parent, out.name):
            durable.sync_tree(staged)
            if out.exists():
                durable.rename_durably(out, old)
            durable.publish_folder(staged, out)
    finally:
        if old.exists() and not out.exists():
            durable.rename_durably(old, out)  # the new one did not make it
        for leftover in (staged, old):
            shutil.rmtree(leftover, ignore_errors=True)


def _check_place(out: Path, workspace: Path) -> None:
    home = workspace.resolve()
    if out.resolve() == home or home in out.resolve().parents:
        raise _unusable(out, "a folder outside the workspace", f"one in {workspace}")
    if not out.parent.is_dir():
        raise _unusable(out, "a name in an existing folder", f"no folder {out.parent}")


def _check_content(out: Path, overwrite: bool) -> None:
    if not out.exists() and not out.is_symlink():
        return
    if out.is_symlink() or not out.is_dir():
        raise _unusable(out, "a folder", "a file or a link")
    found = sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if not p.is_dir())
    if not found:
        return
    if not overwrite:
        raise UsageError(
            str(out),
            expected="a new or empty folder",
            found=f"{len(found)} files, such as {found[0]}",
            remedy="choose another OUT, or replace an earlier export with --overwrite",
        )
    foreign = sorted(set(found) - _exported(out))
    if foreign:
        raise _unusable(out, "nothing but an earlier export", f"other files, such as {foreign[0]}")


def _exported(out: Path) -> set[str]:
    """Names of the files that an earlier export wrote there, by its own record."""
    try:
        written = strict_json.read(out / RECORD).get("files")
    except EdgePsloraError:
        return set()  # no record to trust: every file counts as somebody else's
    return {RECORD, *written} if isinstance(written, dict) else set()


def _unusable(out: Path, expected: str, found: str) -> UsageError:
    return UsageError(str(out), expected=expected, found=found, remedy="choose another OUT")
