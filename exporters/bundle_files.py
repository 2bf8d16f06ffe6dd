"""Which files of a generation a signed update ships, and which a device has in the end. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edge_pslora.errors import UsageError
from edge_pslora.exporters.export_delta import export_delta
from edge_pslora.update.bundle import BASE_PREFIX, BundleKind
from edge_pslora.update.delta_file import DELTA_FILE
from edge_pslora.workspace import layout
from edge_pslora.workspace.generation import Generation
from edge_pslora.workspace.reading import FileDigest, digest_file
from edge_pslora.workspace.workspace import Workspace

_SERVING = (layout.MODEL, layout.ONNX, layout.ONNX_DATA, layout.CARD)
_ONNX = (layout.ONNX, layout.ONNX_DATA)
_LEARNING = (layout.HISTORY, layout.HEAD, layout.ANCHOR)


@dataclass(frozen=True)
class Payload:
    """sources: where each shipped file lies, digests: what it is, both by its name in the bundle.

    parent_model: what a delta goes on from, None for the base. result: what the device has in the end.
    """

    kind: BundleKind
    sources: Mapping[str, Path]
    digests: Mapping[str, FileDigest]
    parent_model: FileDigest | None
    result: Mapping[str, FileDigest]

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in self.digests.values())


def full_payload(opened: Workspace, chosen: Generation, *, learn: bool, with_base: bool) -> Payload:
    """Every file that serving needs, whole.

    Raises:
        UsageError: a generation without a model.
    """
    names = _wanted(opened, chosen, learn)
    if layout.MODEL not in names:
        raise UsageError(
            f"generation {chosen.number}",
            expected=f"a {layout.MODEL}",
            found="none",
            remedy="choose another --generation",
        )
    return _payload("full", opened, chosen, names, names, with_base=with_base)


def delta_payload(
    opened: Workspace, chosen: Generation, staged: Path, *, learn: bool, with_base: bool
) -> Payload:
    """A delta, made in `staged`, and whatever the device cannot make from it.

    Raises:
        UsageError: a generation that no receiver could replay.
        GateRefusedError: the replay is not the published model.
    """
    facts = export_delta(opened, chosen, staged)
    names = _wanted(opened, chosen, learn)
    made = {layout.MODEL, *(_ONNX if facts["onnx"] else ())}
    shipped = [name for name in names if name not in made]
    payload = _payload("delta", opened, chosen, shipped, names, with_base=with_base)
    path = staged / DELTA_FILE
    number = chosen.manifest.parent
    parent = None if number is None else opened.generation(number).manifest.files[layout.MODEL]
    return Payload(
        kind="delta",
        sources={**payload.sources, DELTA_FILE: path},
        digests={**payload.digests, DELTA_FILE: digest_file(path)},
        parent_model=parent,
        result=payload.result,
    )


def _wanted(opened: Workspace, chosen: Generation, learn: bool) -> list[str]:
    """Files that a device's generation gets. Reports and rows that were set aside stay at home."""
    names = {*_SERVING, *opened.header.base_files}  # its own config.json goes before the base's
    names |= set(_LEARNING) if learn else set()
    adapter = f"{layout.ADAPTER}/"
    return [
        name
        for name in sorted(chosen.manifest.files)
        if name in names or (learn and name.startswith(adapter))
    ]


def _payload(
    kind: BundleKind,
    opened: Workspace,
    chosen: Generation,
    shipped: Iterable[str],
    result: Iterable[str],
    *,
    with_base: bool,
) -> Payload:
    files = chosen.manifest.files
    sources = {name: chosen.path / name for name in shipped}
    digests = {name: files[name] for name in sources}
    for name, entry in opened.header.base_files.items() if with_base else ():
        sources[BASE_PREFIX + name] = opened.base / name
        digests[BASE_PREFIX + name] = entry
    return Payload(kind, sources, digests, None, {name: files[name] for name in result})
