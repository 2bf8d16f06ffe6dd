"""`--disk-budget`: the workspace and what a session needs beside it, predicted before it and held to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edge_pslora.config import AdaptConfig
from edge_pslora.core.history import overhead_bytes, pool_bytes
from edge_pslora.errors import BudgetError
from edge_pslora.models.types import LoadedModel
from edge_pslora.pipeline.wear import folder_bytes
from edge_pslora.tasks import TASKS
from edge_pslora.training.memory import Memory
from edge_pslora.training.session import SessionData
from edge_pslora.training.targets import Target
from edge_pslora.units import format_size
from edge_pslora.workspace import layout
from edge_pslora.workspace.workspace import Workspace

# report, card, manifest, the graph without its weights
SMALL_FILES = 4 << 20


@dataclass(frozen=True)
class Published:
    """What a session's files will hold. labels: of the head, those of the session among them."""

    model: LoadedModel
    targets: tuple[Target, ...]
    labels: int
    config: AdaptConfig


def published_bytes(known: Published) -> int:
    """At most so much is in a generation: the weights twice (safetensors, ONNX), and the memory.

    Raises:
        BudgetError: --history-budget does not hold rank 1 of every layer.
    """
    state = known.model.backbone.model.state_dict().values()
    weights: int = sum(t.numel() * t.element_size() for t in state)
    budget, shapes = known.config.budget, {t.name: t.shape for t in known.targets}
    history = pool_bytes(shapes, budget.history_bytes) + overhead_bytes(shapes)
    side = known.model.feature_size + 1
    # weight and moment, or a linear head's weight, its origin and its history
    head = min(budget.head_bytes, 4 * side * side) + 3 * 4 * side * known.labels
    return 2 * weights + history + budget.anchor_bytes + head + SMALL_FILES


def session_bytes(known: Published) -> int:
    """What a session adds while it runs: a generation, and two checkpoints of value and two moments."""
    trained = 4 * known.config.lora.rank * sum(sum(t.shape) for t in known.targets)
    return published_bytes(known) + trained + 2 * 3 * trained


def count_labels(memory: Memory, data: SessionData) -> int:
    """Of the head after the session; 0 without one."""
    task = TASKS[memory.head.task_type]
    return len({*memory.head.labels, *task.labels_in(data.targets)}) if task.has_head else 0


def kept_bytes(workspace: Workspace) -> int:
    """What is there without work in progress: a run replaces it, or goes on with it."""
    return folder_bytes(workspace.path) - folder_bytes(workspace.path / layout.STAGING)


def disk_left(workspace: Workspace, known: Published) -> int | None:
    """What the session leaves of --disk-budget; None: there is none."""
    limit = known.config.budget.disk_bytes
    if limit is None:
        return None
    return limit - kept_bytes(workspace) - session_bytes(known)


def require_disk(workspace: Workspace, known: Published) -> None:
    """Raises BudgetError: the session would not fit --disk-budget."""
    limit = known.config.budget.disk_bytes
    if limit is None:
        return
    used = kept_bytes(workspace)
    needed = used + session_bytes(known)
    if needed > limit:
        raise BudgetError(
            "--disk-budget",
            expected=f"at most {format_size(limit)}",
            found=f"{format_size(used)} in the workspace and {format_size(needed - used)} more for this "
            "session",
            remedy=f"nothing was changed; allow at least {needed} bytes, or choose a smaller "
            "--history-budget, --anchor-budget or --head-budget",
        )


def check_disk(folder: Path, config: AdaptConfig) -> None:
    """Raises BudgetError: more was written than predicted; the old model serves."""
    limit = config.budget.disk_bytes
    if limit is not None and (used := folder_bytes(folder)) > limit:
        raise BudgetError(
            "--disk-budget",
            expected=f"at most {format_size(limit)}",
            found=f"{format_size(used)} after the export",
            remedy=f"the old model was kept; allow at least {used} bytes",
        )
