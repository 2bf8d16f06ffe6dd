"""Opening published generations. They are immutable: whoever holds one never sees a mix."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from edge_pslora.errors import WorkspaceError
from edge_pslora.workspace import layout, manifest
from edge_pslora.workspace.manifest import Manifest
from edge_pslora.workspace.pointer import Pointer, read_pointer


@dataclass(frozen=True)
class Generation:
    """A published generation whose manifest was read and whose files have their lengths."""

    path: Path
    manifest: Manifest
    manifest_sha256: str

    @property
    def number(self) -> int:
        return self.manifest.number

    @property
    def labels(self) -> tuple[str, ...]:
        return self.manifest.labels

    @property
    def bytes(self) -> int:
        """Bytes of its files, the manifest not counted."""
        return sum(entry.bytes for entry in self.manifest.files.values())

    def has(self, name: str) -> bool:
        return name in self.manifest.files

    def file(self, name: str) -> Path:
        """The path of one of its files, after its sha256 was checked: call it before loading."""
        if name not in self.manifest.files:
            raise WorkspaceError(
                str(self.path),
                expected=f"a file {name}",
                found=f"{len(self.manifest.files)} others",
                remedy="roll back to a generation that has it",
            )
        self.verify([name])
        return self.path / name

    def verify(self, names: Collection[str] | None = None) -> None:
        """Check the sha256 of the named files (None: of all) and the lengths of all."""
        manifest.verify_files(self.path, self.manifest.files, contents=names)

    def pointer(self) -> Pointer:
        return Pointer(self.number, self.manifest_sha256)


def numbers(workspace: Path) -> tuple[int, ...]:
    """Numbers of the published generations, ascending; other names in the folder are ignored."""
    folder = workspace / layout.GENERATIONS
    if not folder.is_dir():
        return ()
    found = (layout.parse_generation_name(entry.name) for entry in folder.iterdir())
    return tuple(sorted(number for number in found if number is not None))


def load(workspace: Path, number: int, base_digest: str) -> Generation:
    """Generation `number`; lengths of all files are checked.

    Raises:
        WorkspaceError: it is not there, is damaged, or belongs to another base model.
    """
    folder = layout.generation_folder(workspace, number)
    if not (folder / layout.MANIFEST).is_file():
        there = ", ".join(str(n) for n in numbers(workspace)[-10:]) or "none"
        raise WorkspaceError(
            str(folder),
            expected=f"generation {number} with its {layout.MANIFEST}",
            found=f"none there; generations: {there}",
            remedy=f"choose one: edge-pslora rollback {workspace} --to NUMBER",
        )
    content, data = manifest.read(folder)
    if content.number != number or content.base_digest != base_digest:
        raise WorkspaceError(
            str(folder / layout.MANIFEST),
            expected=f"generation {number} of base {base_digest[:12]}",
            found=f"generation {content.number} of base {content.base_digest[:12]}",
            remedy=f"choose another: edge-pslora rollback {workspace} --to NUMBER",
        )
    manifest.verify_files(folder, content.files)
    return Generation(folder, content, hashlib.sha256(data).hexdigest())


def load_current(workspace: Path, base_digest: str) -> Generation | None:
    """The generation that serves; None when nothing was published yet."""
    pointer = read_pointer(workspace)
    if pointer.number == 0:
        return None
    generation = load(workspace, pointer.number, base_digest)
    if generation.manifest_sha256 != pointer.manifest_sha256:
        raise WorkspaceError(
            str(generation.path / layout.MANIFEST),
            expected=f"sha256 {pointer.manifest_sha256[:12]}..., as the pointer says",
            found=f"{generation.manifest_sha256[:12]}...",
            remedy=f"choose another: edge-pslora rollback {workspace} --to NUMBER",
        )
    return generation
