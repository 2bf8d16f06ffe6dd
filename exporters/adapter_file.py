"""NAME.onnx_adapter, onnxruntime's file of adapter inputs, and NAME.json, which says what it is. No torch.

onnxruntime loads a file with flipped bits in its values as it is: NAME.json has its length and sha256, and
whoever opens an adapter here checks both first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from edge_pslora.errors import AdapterError, EdgePsloraError
from edge_pslora.exporters.lora_factors import Array
from edge_pslora.workspace import durable, strict_json
from edge_pslora.workspace.reading import digest_file

SUFFIX = ".onnx_adapter"
SIDECAR_SUFFIX = ".json"


@dataclass(frozen=True)
class AdapterFacts:
    """What belongs to one adapter file: a generation of the base with this digest.

    labels: names of the outputs in order, while it is active. exact: its factors are those that were
    trained. max_relative_error: as GenerationUpdate.error.
    """

    generation: int
    base_digest: str
    task_type: str
    labels: tuple[str, ...]
    exact: bool = True
    max_relative_error: float = 0.0


@dataclass(frozen=True)
class OnnxAdapter:
    """A checked adapter, loaded by onnxruntime; see open_adapter. shapes: by input name."""

    path: Path
    facts: AdapterFacts
    shapes: Mapping[str, tuple[int, ...]]
    handle: Any = field(repr=False)


def adapter_name(generation: int) -> str:
    """3 -> 'generation-000003.onnx_adapter'."""
    return f"generation-{generation:06d}{SUFFIX}"


def write_adapter(path: Path, parameters: Mapping[str, Array], facts: AdapterFacts) -> None:
    """Write `path` and the JSON file beside it durably; equal input gives equal bytes.

    parameters: input name -> float32 array, none of them empty.

    Raises:
        EdgePsloraError: what onnxruntime wrote does not read back as it was.
    """
    arrays = {n: np.ascontiguousarray(parameters[n], np.float32) for n in sorted(parameters)}
    content = onnxruntime.AdapterFormat()
    content.set_adapter_version(facts.generation)
    content.set_model_version(_model_version(facts.base_digest))
    content.set_parameters(
        {name: onnxruntime.OrtValue.ortvalue_from_numpy(a) for name, a in arrays.items()}
    )
    unchecked = path.with_name(f".{path.name}.new")  # onnxruntime does not sync what it writes
    try:
        content.export_adapter(str(unchecked))
        _require_equal(unchecked, arrays)
        durable.copy_file(unchecked, path)
    finally:
        unchecked.unlink(missing_ok=True)
    digest = digest_file(path)
    sidecar = {
        "generation": facts.generation,
        "base_digest": facts.base_digest,
        "task_type": facts.task_type,
        "labels": list(facts.labels),
        "exact": facts.exact,
        "max_relative_error": facts.max_relative_error,
        "bytes": digest.bytes,
        "sha256": digest.sha256,
        "parameters": {name: list(array.shape) for name, array in arrays.items()},
    }
    durable.write_bytes(path.with_suffix(SIDECAR_SUFFIX), strict_json.canonical(sidecar))


def open_adapter(path: Path) -> OnnxAdapter:
    """Check an adapter against the JSON file beside it, then load it.

    Raises:
        AdapterError: either file is missing, damaged, or not the other's.
    """
    beside = path.with_suffix(SIDECAR_SUFFIX)
    found = strict_json.read(beside, limit=16 << 20, error=AdapterError)
    try:
        facts = AdapterFacts(
            int(found["generation"]),
            str(found["base_digest"]),
            str(found["task_type"]),
            tuple(map(str, found["labels"])),
            bool(found["exact"]),
            float(found["max_relative_error"]),
        )
        shapes = {str(n): tuple(map(int, shape)) for n, shape in found["parameters"].items()}
        expected = int(found["bytes"]), str(found["sha256"])
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise AdapterError(
            str(beside),
            expected="what edge-pslora wrote beside an adapter",
            found=f"{type(problem).__name__}: {problem}",
            remedy="export it again",
        ) from problem
    digest = digest_file(path, error=AdapterError)
    if (digest.bytes, digest.sha256) != expected:
        raise AdapterError(
            str(path),
            expected=f"{expected[0]} bytes with sha256 {expected[1][:12]}...",
            found=f"{digest.bytes} bytes with {digest.sha256[:12]}...",
            remedy="the file is damaged or was changed: copy it again",
        )
    handle = onnxruntime.LoraAdapter()
    try:
        handle.Load(str(path))
    except RuntimeError as problem:
        raise AdapterError(
            str(path),
            expected="an adapter that onnxruntime can load",
            found=str(problem),
            remedy="export it with the onnxruntime that runs it, or an older one",
        ) from problem
    return OnnxAdapter(path, facts, shapes, handle)


def _model_version(base_digest: str) -> int:
    """The start of the base's digest: onnxruntime's file has room for a signed 32-bit number."""
    return int(base_digest[:7], 16)


def _require_equal(path: Path, arrays: Mapping[str, Array]) -> None:
    """A full disk is no error to onnxruntime."""
    problem = "other values"
    try:
        written = onnxruntime.AdapterFormat.read_adapter(str(path)).get_parameters()
        equal = written.keys() == arrays.keys() and all(
            written[name].numpy().tobytes() == array.tobytes() for name, array in arrays.items()
        )
    except RuntimeError as error:
        equal, problem = False, str(error)
    if not equal:
        raise EdgePsloraError(
            str(path),
            expected="the adapter to read back as it was written",
            found=problem,
            remedy="free space on the disk and start again",
        )
