"""`--disk-budget`: the workspace and what a session needs beside it, predicted before it and held to."""

from __future__ import annotations

from pathlib import Path

from edge_pslora.config import AdaptConfig
from edge_pslora.errors import BudgetError
from edge_pslora.models.types import LoadedModel
from edge_pslora.pipeline.wear import folder_bytes
from edge_pslora.training.targets import Target
from edge_pslora.workspace import layout
from edge_pslora.workspace.workspace import Workspace

# report, card, manifest, the graph without its weights
SMALL_FILES = 4 << 20


def published_bytes(model: LoadedModel, config: AdaptConfig) -> int:
    """At most so much is in a generation: the weights twice (safetensors, ONNX), and the memory."""
    weights = sum(t.numel() * t.element_size() for t in model.backbone.model.state_dict().values())
    budget = config.budget
    return (
        2 * weights + budget.history_bytes + budget.anchor_bytes + budget.head_bytes + SMALL_FILES
    )


def session_bytes(model: LoadedModel, targets: tuple[Target, ...], config: AdaptConfig) -> int:
    """What a session adds while it runs: a generation, and two checkpoints of value and two moments."""
    trained = 4 * config.lora.rank * sum(sum(t.shape) for t in targets)
    return published_bytes(model, config) + trained + 2 * 3 * trained


def kept_bytes(workspace: Workspace) -> int:
    """What is there without work in progress: a run replaces it, or goes on with it."""
    return folder_bytes(workspace.path) - folder_bytes(workspace.path / layout.STAGING)


def disk_left(
    workspace: Workspace, model: LoadedModel, targets: tuple[Target, ...], config: AdaptConfig
) -> int | None:
    """What the session leaves of --disk-budget; None: there is none."""
    limit = config.budget.disk_bytes
    if limit is None:
        return None
    return limit - kept_bytes(workspace) - session_bytes(model, targets, config)


def require_disk(
    workspace: Workspace, model: LoadedModel, targets: tuple[Target, ...], config: AdaptConfig
) -> None:
    """Raises BudgetError: the session would not fit --disk-budget."""
    limit = config.budget.disk_bytes
    if limit is None:
        return
    used = kept_bytes(workspace)
    needed = used + session_bytes(model, targets, config)
    if needed > limit:
        raise BudgetError(
            "--disk-budget",
            expected=f"at most {limit} bytes",
            found=f"{used} bytes in the workspace and {needed - used} more for this session",
            remedy=f"nothing was changed; allow at least {needed} bytes, or choose a smaller "
            "--history-budget, --anchor-budget or --head-budget",
        )


def check_disk(folder: Path, config: AdaptConfig) -> None:
    """Raises BudgetError: more was written than predicted; the old model serves."""
    limit = config.budget.disk_bytes
    if limit is not None and (used := folder_bytes(folder)) > limit:
        raise BudgetError(
            "--disk-budget",
            expected=f"at most {limit} bytes",
            found=f"{used} bytes after the export",
            remedy=f"the old model was kept; allow at least {used} bytes",
        )
