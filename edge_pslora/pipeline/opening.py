"""Getting hold of a workspace and its model: an existing one, or a new one from --model."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from edge_pslora.config import AdaptConfig
from edge_pslora.core.history import pool_bytes
from edge_pslora.data.types import Dataset, Samples
from edge_pslora.errors import BudgetError, InputError, UsageError, WorkspaceError
from edge_pslora.models.exported import PROGRAM_FILE
from edge_pslora.models.hf_shards import has_shards, merged_sha256
from edge_pslora.models.load import import_base, load_model
from edge_pslora.models.options import ModelOptions
from edge_pslora.models.types import GivenModule, LoadedModel, ModelArgument, ModelSource
from edge_pslora.pipeline.reading import READ
from edge_pslora.training.targets import adapted_targets
from edge_pslora.workspace import durable, layout
from edge_pslora.workspace.workspace import Workspace


@dataclass(frozen=True)
class Opened:
    """A workspace and its base model, loaded."""

    workspace: Workspace
    model: LoadedModel


@dataclass(frozen=True)
class ModelRequest:
    """--model and what belongs to it; all None or default when the workspace is to know.

    reading: how the first session's data were read, for the later ones; see pipeline.reading.
    """

    argument: ModelArgument | None
    weights: Path | None
    options: ModelOptions
    reading: Mapping[str, Any] = field(default_factory=dict)

    @property
    def given(self) -> GivenModule | None:
        """The module, where one is handed over from Python."""
        return None if isinstance(self.argument, str) else self.argument


def open_existing(path: Path, request: ModelRequest | None, dataset: Dataset) -> Opened:
    """The workspace at `path`, whose base was checked; --model, if given, must be the same model.

    Raises:
        WorkspaceError: damaged, made for another model, or for another kind of data.
    """
    workspace = Workspace.open(path)
    source = source_from_dict(workspace.header.source)
    require_same_kind(workspace, source, dataset)
    if request is not None and request.argument is not None:
        _require_same_model(workspace, source, request)
    workspace.verify_base()
    given = None if request is None else request.given
    return Opened(workspace, load_model(source, workspace.base, given))


def model_needed(path: Path) -> UsageError:
    """The error of a first session without --model."""
    return UsageError(
        "--model",
        expected=f"a model, since {path} is not a workspace yet",
        found="no --model",
        remedy="give a Hugging Face folder, package.module:factory, a .pt2 file or auto",
    )


def create(path: Path, request: ModelRequest, train: Samples, config: AdaptConfig) -> Opened:
    """A new workspace. The model and the budget are tried out before anything is published.

    train: the first session's training samples; `auto` fits its network to them.
    """
    if request.argument is None:
        raise model_needed(path)
    durable.require_free_space(path, _bytes_to_copy(request))
    staged = Workspace.stage_base(path)
    source = import_base(request.argument, request.weights, train, request.options, staged)
    model = load_model(source, staged, request.given)
    targets = adapted_targets(model.backbone.model, config)
    pool_bytes({t.name: t.shape for t in targets}, config.budget.history_bytes)
    if request.reading:
        source = replace(source, options={**source.options, READ: dict(request.reading)})
    labels = model.base_head.labels if model.base_head is not None else ()
    workspace = Workspace.create(
        path,
        staged,
        task_type=train.task_type,
        labels=labels,
        source=asdict(source),
    )
    return Opened(workspace, model)


def _bytes_to_copy(request: ModelRequest) -> int:
    """Of the weights that the model is given by; a network that is made here is small."""
    given = [request.weights] if request.weights is not None else []
    if isinstance(request.argument, str):
        path = Path(request.argument)
        given += sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    return sum(path.stat().st_size for path in given if path.is_file())


@contextmanager
def removed_on_error(path: Path) -> Iterator[None]:
    """A first session that fails on its input or a budget leaves no workspace behind.

    After any other failure (a full disk, a kill) it stays, for the same command to go on with.
    """
    existed = Workspace.exists(path)
    try:
        yield
    except BaseException as problem:
        if not Workspace.exists(path):
            # what cannot be removed now, the next run removes: the first error is the one to report
            shutil.rmtree(path / layout.STAGING / layout.STAGED_BASE, ignore_errors=True)
        elif not existed and isinstance(problem, InputError | UsageError | BudgetError):
            Workspace.open(path).discard()
        raise


def source_from_dict(values: Any) -> ModelSource:
    """ModelSource from the JSON of workspace.json."""
    try:
        return ModelSource(**values)
    except TypeError as problem:
        raise WorkspaceError(
            layout.WORKSPACE_FILE,
            expected="a model source",
            found=str(problem),
            remedy="restore the workspace from a copy",
        ) from problem


def require_same_kind(workspace: Workspace, source: ModelSource, dataset: Dataset) -> None:
    wanted = (source.modality, workspace.header.task_type)
    found = (dataset.train.modality, dataset.train.task_type)
    if wanted != found:
        raise WorkspaceError(
            str(dataset.source),
            expected=f"{wanted[0]} data for {wanted[1]}, as this workspace was made for",
            found=f"{found[0]} data for {found[1]}",
            remedy="use another --workspace, or --task-type if the labels were misread",
        )


def _require_same_model(workspace: Workspace, source: ModelSource, request: ModelRequest) -> None:
    given, argument = request.given, request.argument
    weights = request.weights
    if given is not None or source.kind == "object":
        # whether it is the same module is seen when it gets the workspace's weights
        same = given is not None and source.kind == "object" and weights is None
        argument = argument if isinstance(argument, str) else "a module from Python"
    elif not isinstance(argument, str):
        same = True
    elif source.kind == "exported":
        known = workspace.header.base_files[PROGRAM_FILE].sha256
        same = Path(argument).is_file() and _sha256(Path(argument)) == known
    elif source.kind == "huggingface" and has_shards(Path(argument)):
        same = merged_sha256(Path(argument)) == workspace.header.base_files[layout.MODEL].sha256
    elif source.kind == "huggingface" and (Path(argument) / layout.MODEL).is_file():
        weights = Path(argument) / layout.MODEL
        same = True
    elif source.kind == "auto":
        same = argument == "auto"
    else:
        same = argument == source.reference
    if same and weights is not None and source.kind in ("huggingface", "factory"):
        known = workspace.header.base_files[layout.MODEL].sha256
        same = weights.is_file() and _sha256(weights) == known
    if not same:
        raise WorkspaceError(
            str(workspace.path),
            expected=f"the model it was made for ({source.kind} {source.reference})".rstrip(),
            found=f"--model {argument}" + (f" --weights {weights}" if weights else ""),
            remedy="leave --model out, or use another --workspace"
            if source.kind != "object"
            else "give model= that module, or use another workspace",
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
