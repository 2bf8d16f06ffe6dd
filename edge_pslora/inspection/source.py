"""Whether an argument is a model or data, and what either is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edge_pslora.data.options import ReadOptions
from edge_pslora.errors import InputError, UsageError
from edge_pslora.inspection.data_facts import inspect_data
from edge_pslora.inspection.facts import DataFacts, ModelFacts
from edge_pslora.inspection.hf_facts import inspect_folder
from edge_pslora.inspection.module_facts import inspect_auto, inspect_factory, inspect_weights
from edge_pslora.models.hf_folder import CONFIG_FILE
from edge_pslora.models.options import ModelOptions
from edge_pslora.workspace.layout import WORKSPACE_FILE


def inspect_source(
    source: str,
    *,
    read: ReadOptions,
    model_options: ModelOptions,
    weights: Path | None = None,
    targets: Sequence[str] = ("auto",),
    rank: int = 8,
) -> DataFacts | ModelFacts:
    """Describes a --model argument or a DATA argument; trains nothing and writes nothing.

    Raises:
        InputError: nothing that can be used, or a workspace.
        UsageError: --weights with something else than package.module:factory.
    """
    path = Path(source)
    is_factory = ":" in source and not path.exists()
    if weights is not None and not is_factory:
        raise UsageError(
            "--weights",
            expected="package.module:factory to inspect",
            found=source,
            remedy="leave --weights out, or inspect the file of weights itself",
        )
    if source == "auto" and not path.exists():
        return inspect_auto(rank)
    if is_factory:
        return inspect_factory(source, weights, targets, rank)
    if (path / WORKSPACE_FILE).is_file():
        raise InputError(
            source,
            expected="a model or data",
            found="a workspace",
            remedy=f"run: edge-pslora status {source}",
        )
    if (path / CONFIG_FILE).is_file():
        return inspect_folder(path, model_options, targets, rank)
    if path.suffix.casefold() == ".safetensors" and path.is_file():
        return inspect_weights(path, targets, rank)
    return inspect_data(path, read)
