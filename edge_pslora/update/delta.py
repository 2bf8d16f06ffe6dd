"""What a delta says of itself: from which files to which, by which arithmetic. Strict to read.

The text is canonical JSON; core/replay.py has the arithmetic, update/delta_file.py the file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from edge_pslora.config import FACTOR_FORMS, TASK_TYPES, FactorForm, MergeRule, TaskType
from edge_pslora.errors import AdapterError
from edge_pslora.workspace import strict_json
from edge_pslora.workspace.reading import FileDigest

LayerKind = Literal[
    "linear", "transposed_linear", "conv1d", "conv2d", "embedding", "mha_in_proj", "mha_out_proj"
]
# `cumulative` is not among them: it merges running sums, which no receiver has
RULES: tuple[MergeRule, ...] = ("max_magnitude", "constructive", "average", "none")
DELTA_FILE = "delta.safetensors"
_TURNED = ("embedding", "transposed_linear")  # their weight is the transpose of the matrix B A
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ONNX_FILES = {"model.onnx", "model.onnx_data"}
_FIELDS = {
    *("generation", "parent", "session", "rule", "scaling", "factors", "layers", "widened"),
    *("base_digest", "base_model", "parent_model", "model", "model_metadata", "onnx"),
    *("labels", "task_type"),
}


@dataclass(frozen=True)
class DeltaLayer:
    """One adapted weight. name: of its tensor in model.safetensors; rank: of its update."""

    name: str
    kind: LayerKind
    rank: int

    @property
    def turned(self) -> bool:
        """Whether the weight, seen as a matrix, gets (B A)^T."""
        return self.kind in _TURNED


@dataclass(frozen=True)
class OnnxPart:
    """How the parent's ONNX file becomes this generation's.

    files: length and sha256 of the published one, by name. prefix and names: the tensor NAME is the
    initializer names[NAME], or else prefix + NAME; "" where the graph has none. metadata: the
    metadata_props that are others than the parent's.
    """

    files: Mapping[str, FileDigest]
    prefix: str
    names: Mapping[str, str]
    metadata: Mapping[str, str]

    def initializer(self, tensor: str) -> str:
        return self.names.get(tensor, self.prefix + tensor)


@dataclass(frozen=True)
class Delta:
    """The update that makes `generation` out of its parent, None for the base itself.

    session: t of the merge, counted from 1. scaling: of every layer. factors: the form of A and B.
    layers: every adapted weight. widened: tensors that the result has in float32 and the parent in
    another float type. base_digest: of the workspace. base_model, parent_model, model: the files
    W_0, W_{t-1} and W_t; model_metadata: of the last one's header. onnx: None where the parent has no
    ONNX file that could be patched. labels: of the outputs, in order.
    """

    generation: int
    parent: int | None
    session: int
    rule: MergeRule
    scaling: float
    factors: FactorForm
    layers: tuple[DeltaLayer, ...]
    widened: tuple[str, ...]
    base_digest: str
    base_model: FileDigest
    parent_model: FileDigest
    model: FileDigest
    model_metadata: Mapping[str, str]
    onnx: OnnxPart | None
    labels: tuple[str, ...]
    task_type: TaskType


def encode(delta: Delta) -> str:
    """Canonical JSON of one line."""
    content = {
        "generation": delta.generation,
        "parent": delta.parent,
        "session": delta.session,
        "rule": delta.rule,
        "scaling": delta.scaling,
        "factors": delta.factors,
        "layers": [[layer.name, layer.kind, layer.rank] for layer in delta.layers],
        "widened": list(delta.widened),
        "base_digest": delta.base_digest,
        "base_model": _pair(delta.base_model),
        "parent_model": _pair(delta.parent_model),
        "model": _pair(delta.model),
        "model_metadata": dict(delta.model_metadata),
        "onnx": None if delta.onnx is None else _onnx_content(delta.onnx),
        "labels": list(delta.labels),
        "task_type": delta.task_type,
    }
    return strict_json.canonical(content).decode("ascii").rstrip("\n")


def decode(text: str, where: str) -> Delta:
    """The inverse of encode; every field is checked, none may be missing or extra.

    Raises:
        AdapterError: names the first field that is wrong.
    """
    content = strict_json.parse(text.encode(), where, error=AdapterError)
    _check(content.keys() == _FIELDS, where, f"the fields {', '.join(sorted(_FIELDS))}", content)
    generation, parent, session = (content[n] for n in ("generation", "parent", "session"))
    _check(_count(generation), where, "a generation from 1", generation)
    _check(
        parent is None or (_count(parent) and parent < generation),
        where,
        "a parent before the generation",
        parent,
    )
    _check(_count(session), where, "a session from 1", session)
    _one_of(where, "rule", content["rule"], RULES)
    _one_of(where, "factors", content["factors"], FACTOR_FORMS)
    _one_of(where, "task_type", content["task_type"], TASK_TYPES)
    scaling = content["scaling"]
    _check(type(scaling) is float and 0 < scaling < 1e30, where, "a scaling above 0", scaling)
    layers = _layers(content["layers"], where)
    widened, labels = content["widened"], content["labels"]
    for name, values in (("widened", widened), ("labels", labels)):
        _check(_different_texts(values), where, f"different texts in {name}", values)
    touched = [layer.name for layer in layers] + widened
    _check(len(set(touched)) == len(touched), where, "each tensor once", touched)
    base_digest, metadata = content["base_digest"], content["model_metadata"]
    _check(_is_sha256(base_digest), where, "a sha256 in base_digest", base_digest)
    _check(_texts(metadata), where, "model_metadata from text to text", metadata)
    return Delta(
        generation=generation,
        parent=parent,
        session=session,
        rule=content["rule"],
        scaling=scaling,
        factors=content["factors"],
        layers=layers,
        widened=tuple(widened),
        base_digest=base_digest,
        base_model=_digest(content["base_model"], where, "base_model"),
        parent_model=_digest(content["parent_model"], where, "parent_model"),
        model=_digest(content["model"], where, "model"),
        model_metadata=metadata,
        onnx=None if content["onnx"] is None else _onnx_part(content["onnx"], where),
        labels=tuple(labels),
        task_type=content["task_type"],
    )


def _layers(values: Any, where: str) -> tuple[DeltaLayer, ...]:
    _check(isinstance(values, list), where, "a list of layers", values)
    found = []
    for entry in values:
        fits = isinstance(entry, list) and len(entry) == 3 and isinstance(entry[0], str)
        _check(fits, where, "name, kind and rank of each layer", entry)
        name, kind, rank = entry
        _one_of(where, f"kind of {name}", kind, get_args(LayerKind))
        _check(_count(rank) and rank <= 1 << 16, where, f"a rank of {name} from 1", rank)
        found.append(DeltaLayer(name, kind, rank))
    return tuple(found)


def _onnx_content(part: OnnxPart) -> dict[str, Any]:
    return {
        "files": {name: _pair(digest) for name, digest in part.files.items()},
        "prefix": part.prefix,
        "names": dict(part.names),
        "metadata": dict(part.metadata),
    }


def _onnx_part(content: Any, where: str) -> OnnxPart:
    fields = {"files", "prefix", "names", "metadata"}
    fits = isinstance(content, dict) and content.keys() == fields
    _check(fits, where, f"{', '.join(sorted(fields))} in onnx", content)
    files, prefix = content["files"], content["prefix"]
    _check(
        isinstance(files, dict) and "model.onnx" in files and files.keys() <= _ONNX_FILES,
        where,
        f"files of {', '.join(sorted(_ONNX_FILES))}",
        files,
    )
    _check(isinstance(prefix, str), where, "a text in prefix", prefix)
    for name in ("names", "metadata"):
        _check(_texts(content[name]), where, f"{name} from text to text", content[name])
    digests = {name: _digest(pair, where, name) for name, pair in files.items()}
    return OnnxPart(digests, prefix, content["names"], content["metadata"])


def _digest(pair: Any, where: str, name: str) -> FileDigest:
    fits = isinstance(pair, list) and len(pair) == 2 and _count(pair[0]) and _is_sha256(pair[1])
    _check(fits, where, f"length and sha256 in {name}", pair)
    return FileDigest(pair[0], pair[1])


def _pair(digest: FileDigest) -> list[Any]:
    return [digest.bytes, digest.sha256]


def _one_of(where: str, field: str, value: Any, known: tuple[str, ...]) -> None:
    _check(isinstance(value, str) and value in known, where, f"{field} {', '.join(known)}", value)


def _texts(values: Any) -> bool:
    return isinstance(values, dict) and all(isinstance(value, str) for value in values.values())


def _different_texts(values: Any) -> bool:
    texts = isinstance(values, list) and all(isinstance(value, str) for value in values)
    return texts and len(set(values)) == len(values)


def _count(value: Any) -> bool:
    return type(value) is int and 1 <= value < 2**53


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def _check(condition: bool, where: str, expected: str, found: Any) -> None:
    if not condition:
        raise AdapterError(
            where,
            expected=expected,
            found=ascii(found)[:120],
            remedy="this is no delta that edge-pslora wrote; export it again",
        )
