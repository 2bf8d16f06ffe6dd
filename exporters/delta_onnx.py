"""What a delta says so that a receiver can patch its deployed ONNX file too. No torch.

onnx itself is imported inside the functions: the other exports do without it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from edge_pslora.errors import InputError
from edge_pslora.exporters.lora_factors import Array
from edge_pslora.update.delta import OnnxPart
from edge_pslora.workspace import durable, layout
from edge_pslora.workspace.generation import Generation
from edge_pslora.workspace.reading import FileDigest
from edge_pslora.workspace.tensors import TensorFile

if TYPE_CHECKING:
    from edge_pslora.exporters.onnx_read import ModelFile

_PREFIX = "backbone.model."
_TRIAL = "trial.onnx"


def onnx_part(
    chosen: Generation, parent: Generation, after: TensorFile, changed: Iterable[str], scratch: Path
) -> tuple[OnnxPart | None, list[str]]:
    """The part of a delta, tried out on the parent's file; None and a sentence why where that fails.

    Args:
        after: the merged model. changed: the names of its tensors that are not the parent's.
        scratch: a folder, which is left as it was.
    """
    from edge_pslora.exporters.onnx_patch import patch_onnx
    from edge_pslora.exporters.onnx_read import open_model

    files = (layout.ONNX, layout.ONNX_DATA)
    digests = {n: chosen.manifest.files[n] for n in files if chosen.has(n)}
    trial = scratch / _TRIAL
    try:
        chosen.verify(list(digests))
        parent.verify([name for name in files if parent.has(name)])
        before_path = parent.path / layout.ONNX
        with open_model(before_path) as before, open_model(chosen.path / layout.ONNX) as now:
            tensors = {name: after.read(name) for name in sorted(changed)}
            names = {name: _initializer(now, name, array) for name, array in tensors.items()}
            odd = {name: found for name, found in names.items() if found != _PREFIX + name}
            metadata = _metadata(now)
            old = _metadata(before)
            differing = {key: v for key, v in metadata.items() if old.get(key) != v}
        part = OnnxPart(digests, _PREFIX, odd, differing)
        given = {names[name]: array for name, array in tensors.items() if names[name]}
        patch_onnx(before_path, trial, given, old | differing, expected=expected(part))
    except InputError as problem:
        return None, [f"not for replay --onnx: {problem.where}, {problem.found}"]
    finally:
        for path in (trial, trial.with_name(trial.name + "_data")):
            if path.exists():
                durable.remove_file(path)
    return part, []


def expected(part: OnnxPart) -> tuple[FileDigest, ...]:
    """As `patch_onnx` takes them."""
    return tuple(part.files[n] for n in (layout.ONNX, layout.ONNX_DATA) if n in part.files)


def _metadata(file: ModelFile) -> dict[str, str]:
    from edge_pslora.exporters.onnx_file import LAYOUT_KEY

    return {key: value for key, value in file.metadata.items() if key != LAYOUT_KEY}


def _initializer(file: ModelFile, name: str, array: Array) -> str:
    """The weight of the graph that has this tensor's shape and bytes, the likest name first; "": none."""
    from edge_pslora.exporters.onnx_file import LARGE, Values, unchanged

    parts = name.split(".")[::-1]

    def unlike(other: str) -> tuple[int, str]:
        pairs = enumerate(zip(parts, other.split(".")[::-1], strict=False))
        return -next((i for i, (a, b) in pairs if a != b), len(parts)), other

    stubs = file.initializers
    fits = [n for n in file.named if list(stubs[n].dims) == list(array.shape)]
    for other in sorted(fits, key=unlike):
        if array.nbytes < LARGE:
            same = stubs[other].raw_data == Values(array).raw().tobytes()
        else:
            same = bool(unchanged({other: file.weights[other]}, {other: Values(array)}))
        if same:
            return other
    return ""
