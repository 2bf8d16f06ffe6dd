"""The merged model as a folder in the Hugging Face layout. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from edge_pslora.errors import WorkspaceError
from edge_pslora.exporters.lora_factors import Array
from edge_pslora.exporters.model_card import ModelCard, write_card
from edge_pslora.workspace import durable, layout, strict_json
from edge_pslora.workspace.tensors import write_tensors

CONFIG_FILE = "config.json"
_PROBLEMS = {"multilabel": "multi_label_classification", "regression": "regression"}


def write_merged_model(
    folder: Path,
    tensors: Mapping[str, Array],
    *,
    base_dir: Path | None = None,
    labels: Sequence[str] | None = None,
    card: ModelCard | None = None,
    metadata: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write model.safetensors, the base's small files and README.md, each durably.

    Args:
        folder: exists; files of the same names are replaced.
        tensors: every tensor, named as in the base's own file.
        base_dir: base/ of the workspace: config, tokenizer and processor files are copied; None
            where the base is no Hugging Face folder.
        labels: of the classifier, if `tensors` holds the one that config.json describes: id2label
            and label2id are set to them.
        card: goes to README.md.
        metadata: beside format=pt, which transformers insists on.

    Raises:
        EdgePsloraError: a value is not finite, or the disk failed.
    """
    paths = [folder / layout.MODEL]
    write_tensors(paths[0], tensors, {**(metadata or {}), "format": "pt"}, finite=True)
    for name in side_files(base_dir) if base_dir is not None else ():
        assert base_dir is not None
        paths.append(folder / name)
        if name == CONFIG_FILE and labels is not None:
            durable.write_bytes(paths[-1], config_with_labels(base_dir / name, labels))
        else:
            durable.copy_file(base_dir / name, paths[-1])
    if card is not None:
        paths.append(write_card(folder, card))
    return paths


def side_files(base_dir: Path) -> list[str]:
    """Names of the files of base/ that belong beside the weights, sorted."""
    own = {layout.MODEL, layout.SOURCE}
    return sorted(p.name for p in base_dir.iterdir() if p.is_file() and p.name not in own)


def config_with_labels(path: Path, labels: Sequence[str], task_type: str = "") -> bytes:
    """config.json with id2label and label2id for a classifier of len(labels) outputs.

    task_type: of more than one label at once, or of values: transformers has other losses for them.
    """
    config = strict_json.read(path, limit=16 << 20, error=WorkspaceError)
    config["id2label"] = {str(index): label for index, label in enumerate(labels)}
    config["label2id"] = {label: index for index, label in enumerate(labels)}
    if task_type in _PROBLEMS:
        config["problem_type"] = _PROBLEMS[task_type]
    return (json.dumps(config, indent=2) + "\n").encode("ascii")
