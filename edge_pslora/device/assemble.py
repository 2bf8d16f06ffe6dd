"""The staged generation of a bundle: what it ships, and what its delta makes of what is here. No torch.

Every step looks first whether its result is there already, so that a killed run goes on.
"""

from __future__ import annotations

from pathlib import Path

from edge_pslora.device import receive
from edge_pslora.device.receive import Offer
from edge_pslora.errors import BundleError, EdgePsloraError, InputError
from edge_pslora.exporters.onnx_safety import check_onnx
from edge_pslora.update.bundle import BASE_PREFIX
from edge_pslora.update.delta import DELTA_FILE
from edge_pslora.update.replay import replay
from edge_pslora.workspace import durable, layout
from edge_pslora.workspace.generation import Generation
from edge_pslora.workspace.reading import digest_file
from edge_pslora.workspace.staging import Staged
from edge_pslora.workspace.tensors import open_tensors
from edge_pslora.workspace.workspace import Workspace

_MODEL_FILES = (layout.MODEL, layout.ONNX, layout.ONNX_DATA)


def create_workspace(offer: Offer, path: Path) -> Workspace:
    """A workspace from the bundle's base model; what a killed creation left is dealt with."""
    published = receive.published_header(offer)
    names = {
        name: name.removeprefix(BASE_PREFIX)
        for name in offer.bundle.payload
        if name.startswith(BASE_PREFIX)
    }
    staged = Workspace.stage_base(path)
    receive.fetch_tree(offer, names, staged)
    check_tensors(staged / layout.MODEL, None, offer.where)
    return Workspace.create(
        path,
        staged,
        task_type=published.task_type,
        labels=published.labels,
        source=published.source,
    )


def assemble(offer: Offer, workspace: Workspace, staged: Staged) -> None:
    """Fill the staged folder with exactly the files of the bundle's result.

    Raises:
        BundleError: a file is not what the bundle promises, or the delta does not lead there.
    """
    shipped = {
        name: name
        for name in offer.bundle.payload
        if name != DELTA_FILE and not name.startswith(BASE_PREFIX)
    }
    receive.fetch_tree(offer, shipped, staged.folder)
    if offer.bundle.kind == "delta":
        _replay(offer, workspace, staged)
    receive.result_files(staged.folder, offer)
    base = workspace.base / layout.MODEL
    check_tensors(staged.folder / layout.MODEL, base, offer.where)
    check_onnx(staged.folder / layout.ONNX, error=BundleError)


def _replay(offer: Offer, workspace: Workspace, staged: Staged) -> None:
    made = [n for n in _MODEL_FILES if n in offer.bundle.result and n not in offer.bundle.payload]
    if all(_is_there(offer, staged.folder, name) for name in made):
        return
    for name in made:
        durable.remove_leftovers(staged.folder, name)
        if (staged.folder / name).exists():
            durable.remove_file(staged.folder / name)
    delta = staged.scratch / DELTA_FILE
    receive.fetch(offer, DELTA_FILE, delta)
    parent = receive.find_parent(offer, workspace)
    workspace.verify_base()
    model = None if parent is None else parent.path / layout.MODEL
    out = staged.folder / layout.MODEL
    try:
        if layout.ONNX not in made:
            replay(delta, workspace.base, model, out)
        else:
            # not above: a full bundle needs nothing of it
            from edge_pslora.exporters.replay_onnx import replay_onnx

            deployed = _copy_deployed(offer, parent, staged.folder)
            replay_onnx(delta, workspace.base, model, out, deployed)
    except InputError as problem:
        raise BundleError(
            problem.where,
            expected=problem.expected,
            found=problem.found,
            remedy="get a full bundle instead; nothing was changed",
        ) from problem


def _copy_deployed(offer: Offer, parent: Generation | None, staged: Path) -> Path:
    """The parent's ONNX file where the delta may change it."""
    if parent is None or not parent.has(layout.ONNX):
        raise BundleError(
            offer.where,
            expected=f"a bundle that ships {layout.ONNX}, since none is here to change",
            found="a delta without it",
            remedy="get a full bundle; nothing was changed",
        )
    for name in (layout.ONNX_DATA, layout.ONNX):
        if parent.has(name):
            durable.copy_file(parent.file(name), staged / name)
    return staged / layout.ONNX


def _is_there(offer: Offer, folder: Path, name: str) -> bool:
    path = folder / name
    return path.is_file() and digest_file(path) == offer.bundle.result[name]


def generation_of(offer: Offer, workspace: Workspace) -> Generation | None:
    """The published generation of this very bundle on the one that serves: left by a killed run."""
    parent = workspace.current()
    for number in reversed(workspace.generations()):
        try:
            found = workspace.generation(number)
        except EdgePsloraError:
            continue
        same = found.manifest.metrics.get("bundle") == offer.facts
        before = None if parent is None else parent.number
        if same and found.manifest.parent == before and not _differs(offer, found):
            return found
    return None


def _differs(offer: Offer, found: Generation) -> bool:
    if dict(found.manifest.files) != dict(offer.bundle.result):
        return True
    try:
        found.verify()
    except EdgePsloraError:
        return True
    return False


def check_tensors(model: Path, base: Path | None, where: str) -> None:
    """A strict header, and every tensor of the base in it: of its shape, but for the rows of a head."""
    with open_tensors(model, error=BundleError) as file:
        if base is None:
            return
        with open_tensors(base) as other:
            for name, spec in other.header.specs.items():
                found = file.header.specs.get(name)
                shape = None if found is None else found.shape
                fits = shape is not None and len(shape) == len(spec.shape)
                if shape is None or not fits or shape[1:] != spec.shape[1:]:
                    expected = f"a model with {name} of shape {list(spec.shape)}"
                    raise receive.unfit(
                        where, expected, f"{None if shape is None else list(shape)}"
                    )
