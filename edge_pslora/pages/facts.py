"""What a workspace's manifests say of its sessions. Old manifests lack fields: those are None here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from edge_pslora.errors import WorkspaceError
from edge_pslora.workspace import layout
from edge_pslora.workspace.generation import Generation
from edge_pslora.workspace.workspace import Workspace

# what the files of a generation are for; everything else counts as "other"
KINDS = {
    layout.ONNX: "model",
    layout.ONNX_DATA: "model",
    layout.HISTORY: "history",
    layout.HEAD: "head",
    layout.ANCHOR: "anchors",
    layout.ADAPTER: "adapter",
}
_LARGEST = 1e15  # no score and no size is beyond; JSON has integers that no float holds
_LONGEST = 1000  # letters of a name or a reason
SIZE_NAMES = ("model", "history", "head", "anchors", "adapter", "other")


@dataclass(frozen=True)
class LayerFigures:
    """update: |D| / |W0|. refused: share of its entries that the merge did not take. conflict: share of
    its entries whose sign is against that of the sum of all before."""

    update: float | None
    refused: float | None
    conflict: float | None


@dataclass(frozen=True)
class SessionFigures:
    """One session, promoted or refused. number: None where the gate refused it, or it is damaged.

    by_task: task -> score after this session. sizes: a number of bytes for each of SIZE_NAMES.
    damage: why its manifest could not be read, or "".
    """

    number: int | None
    task: str
    created: str
    parent: int | None = None
    reason: str = ""
    metric: str = "accuracy"
    samples: int | None = None
    before: float | None = None
    after: float | None = None
    anchor_before: float | None = None
    anchor_after: float | None = None
    retention: float | None = None
    new_labels: int = 0
    labels: int = 0
    history_bytes: float | None = None
    history_budget: float | None = None
    tasks: Sequence[str] = ()
    by_task: Mapping[str, float] = field(default_factory=dict)
    layers: Mapping[str, LayerFigures] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    damage: str = ""

    @property
    def bytes(self) -> int:
        return sum(self.sizes.values())


@dataclass(frozen=True)
class WorkspaceFigures:
    """chain: what led to the generation that serves, oldest first. others: published, but not of it.

    refused: what the gate refused, as far as it is remembered. damage: lines, "" for none.
    """

    name: str
    model: str
    task_type: str
    base_bytes: int
    current: int | None
    chain: tuple[SessionFigures, ...]
    others: tuple[SessionFigures, ...]
    refused: tuple[SessionFigures, ...]


def workspace_figures(workspace: Workspace) -> WorkspaceFigures:
    """Reads every manifest. A damaged generation is told, and ends the chain; nothing is changed.

    Raises:
        WorkspaceError: the pointer, or the generation that serves, is damaged.
    """
    current = workspace.current()
    header = workspace.header
    there: dict[int, SessionFigures] = {}
    labels: dict[int | None, set[str]] = {None: set(header.labels)}
    refused: list[SessionFigures] = []
    for number in workspace.generations():
        try:
            found = workspace.generation(number)
        except WorkspaceError as problem:
            there[number] = SessionFigures(number, f"generation {number}", "", damage=str(problem))
            continue
        known = labels.get(found.manifest.parent, set())
        there[number] = _session(found, known)
        labels[number] = set(found.labels)
        refused += _refused(found.manifest.metrics.get("refused_before"))
    refused += _refused([dict(r) for r in workspace.refusals()])
    chain: list[SessionFigures] = []
    step = None if current is None else current.number
    while step is not None and step in there and not there[step].damage:
        chain.append(there[step])
        step = there[step].parent
    numbers = {s.number for s in chain}
    return WorkspaceFigures(
        name=workspace.path.resolve().name,
        model=str(header.source.get("reference") or header.source.get("kind")),
        task_type=header.task_type,
        base_bytes=sum(entry.bytes for entry in header.base_files.values()),
        current=None if current is None else current.number,
        chain=tuple(reversed(chain)),
        others=tuple(s for n, s in there.items() if n not in numbers),
        refused=tuple(refused),
    )


def _session(found: Generation, known: set[str]) -> SessionFigures:
    manifest, metrics = found.manifest, found.manifest.metrics
    budget = manifest.config.get("budget")
    return SessionFigures(
        number=found.number,
        parent=manifest.parent,
        task=_text({"task": manifest.task}, "task"),
        created=manifest.created,
        new_labels=len(set(manifest.labels) - known),
        labels=len(manifest.labels),
        history_bytes=_number(metrics, "history_bytes"),
        history_budget=_number(budget if isinstance(budget, dict) else {}, "history_bytes"),
        tasks=_texts(metrics.get("tasks")),
        by_task=_scores(metrics.get("accuracy_by_task")),
        layers=_layers(metrics),
        sizes=_sizes(found),
        **_common(metrics),
    )


def _refused(records: Any) -> list[SessionFigures]:
    """What refusals.json and manifests remember of refused sessions (workspace/refusals.py)."""
    found = [r for r in records if isinstance(r, dict)] if isinstance(records, list) else []
    return [
        SessionFigures(
            number=None,
            task=_text(record, "task", "?"),
            created=_text(record, "created"),
            parent=int(_number(record, "parent") or 0) or None,
            **_common(record),
        )
        for record in found
    ]


def _common(metrics: Mapping[str, Any]) -> dict[str, Any]:
    samples = _number(metrics, "samples")
    return {
        "reason": _text(metrics, "reason"),
        "metric": _text(metrics, "metric", "accuracy"),
        "samples": None if samples is None else round(samples),
        "before": _number(metrics, "accuracy_before"),
        "after": _number(metrics, "accuracy_after"),
        "anchor_before": _number(metrics, "anchor_before"),
        "anchor_after": _number(metrics, "anchor_after"),
        "retention": _number(metrics, "retention"),
    }


def _layers(metrics: Mapping[str, Any]) -> dict[str, LayerFigures]:
    rows = metrics.get("layers")
    first = metrics.get("sessions") == 1  # there was nothing to refuse for, and nothing to oppose
    return {
        str(row["name"]): LayerFigures(
            _number(row, "relative_norm"),
            None if first else _number(row, "kept_past"),
            None if first else _number(row, "sign_conflict"),
        )
        for row in (rows if isinstance(rows, list) else [])
        if isinstance(row, dict) and "name" in row
    }


def _sizes(found: Generation) -> dict[str, int]:
    sizes = dict.fromkeys(SIZE_NAMES, 0)
    for name, entry in found.manifest.files.items():
        sizes[KINDS.get(name, KINDS.get(name.split("/")[0], "other"))] += entry.bytes
    return sizes


def _number(values: Mapping[str, Any], name: str) -> float | None:
    value = values.get(name)
    return float(value) if _is_number(value) else None


def _text(values: Mapping[str, Any], name: str, otherwise: str = "") -> str:
    return str(values.get(name, otherwise))[:_LONGEST]


def _scores(values: Any) -> dict[str, float]:
    pairs = values.items() if isinstance(values, dict) else ()
    return {str(k): float(v) for k, v in pairs if _is_number(v)}


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST


def _texts(values: Any) -> tuple[str, ...]:
    return tuple(str(v) for v in values) if isinstance(values, list) else ()
