"""The merged weights as a folder that transformers loads, with the head and the labels of the generation.

A classifier of the base whose labels nobody knew was not taken over: the session's head reads the same
features, so it goes where that classifier was: left in the file, the old one would answer. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_pslora.exporters import export_files as files
from edge_pslora.exporters.lora_factors import Array
from edge_pslora.exporters.model_card import CARD_FILE
from edge_pslora.exporters.safetensors_model import CONFIG_FILE, config_with_labels
from edge_pslora.workspace import durable, layout
from edge_pslora.workspace.generation import Generation
from edge_pslora.workspace.tensors import open_tensors, write_tensors
from edge_pslora.workspace.workspace import Workspace

HEADED = {
    "text": "AutoModelForSequenceClassification",
    "image": "AutoModelForImageClassification",
    "audio": "AutoModelForAudioClassification",
}
_OWN_HEAD = "pslora_head."  # of a model that has no classifier of its own
_TEMPLATE = "template"  # in the head's metadata: it reads features of norm 1


def export_model(opened: Workspace, chosen: Generation, staged: Path) -> tuple[str, ...]:
    """Fill `staged`; gives sentences for the user."""
    files.copy_side_files(opened, chosen, staged)
    files.write_head(chosen, staged)
    options = opened.header.source.get("options") or {}
    headed = bool(options.get("head_module"))
    notes: tuple[str, ...] = ()
    if not _is_huggingface(opened) or not headed or options.get("head_labels") is not None:
        files.copy_published(chosen, layout.MODEL, staged / layout.MODEL)
    else:
        headed = _replace_classifier(opened, chosen, staged, str(options["head_module"]))
        if not headed:
            notes = ("The model's own classifier cannot hold this head: use head.safetensors.",)
    files.write_export_card(opened, chosen, staged)
    if _is_huggingface(opened):
        _add_usage(opened, staged, headed)
    return notes


def _is_huggingface(opened: Workspace) -> bool:
    return opened.header.source.get("kind") == "huggingface"


def _replace_classifier(opened: Workspace, chosen: Generation, staged: Path, module: str) -> bool:
    """Write the weights with the generation's head as the base's classifier `module`.

    False: it has no bias or the head reads other features; the file then has no classifier at all, which
    transformers says when it loads it.
    """
    head, scaled = _head(chosen)
    with open_tensors(chosen.file(layout.MODEL)) as file:
        tensors = {n: file.read(n) for n in file.names if not n.startswith(_OWN_HEAD)}
        metadata = file.header.metadata
    stale = {part: f"{module}.{part}" for part in ("weight", "bias")}
    holds = stale["weight"] in tensors and not scaled
    holds = holds and (stale["bias"] in tensors or not head["bias"].any())
    for part, name in stale.items():
        if tensors.pop(name, None) is not None and holds:
            tensors[name] = head[part]
    write_tensors(staged / layout.MODEL, tensors, {**metadata, "format": "pt"}, finite=True)
    path = staged / CONFIG_FILE
    if holds and path.exists():
        content = config_with_labels(path, chosen.labels, opened.header.task_type)
        durable.write_bytes(path, content)
    return holds


def _head(chosen: Generation) -> tuple[Mapping[str, Array], bool]:
    with open_tensors(chosen.file(layout.HEAD)) as file:
        tensors = {part: file.read(part, finite=True) for part in ("weight", "bias")}
        return tensors, _TEMPLATE in file.header.metadata


def _add_usage(opened: Workspace, staged: Path, headed: bool) -> None:
    """The card ends with the lines that load the folder."""
    source = opened.header.source
    lines = _loading(str(source.get("modality")), source.get("options") or {}, headed)
    card = (staged / CARD_FILE).read_bytes().decode()
    text = "\n".join([card.rstrip(), "", "```python", *lines, "```", ""])
    durable.write_bytes(staged / CARD_FILE, text.encode())


def _loading(modality: str, options: Mapping[str, Any], headed: bool) -> list[str]:
    pooling = str(options.get("pooling"))
    if headed or pooling == "language":
        name = HEADED[modality] if headed else "AutoModelForCausalLM"
        return [f"from transformers import {name}", "", f'model = {name}.from_pretrained("FOLDER")']
    return [
        "from safetensors.numpy import load_file",
        "from transformers import AutoModel",
        "",
        'model = AutoModel.from_pretrained("FOLDER")',
        'head = load_file("FOLDER/head.safetensors")',
        f'# features @ head["weight"].T + head["bias"]; features: {pooling} of the last hidden states',
    ]
