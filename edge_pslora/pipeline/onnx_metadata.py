"""What an ONNX file says of itself: where it comes from, its labels, how its inputs are made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from edge_pslora.models.types import LoadedModel
from edge_pslora.training.head import Head
from edge_pslora.version import VERSION
from edge_pslora.workspace.workspace import Workspace

EXPORTER = "pslora.exporter"
_TRACERS = ("torch", "onnxscript", "onnx-ir", "onnx")
# of ModelSource.options: scaling of pictures and sound, length of texts, order of columns
PREPARATION = ("image", "audio", "max_length", "sample_shape", "feature_names")


def onnx_metadata(
    workspace: Workspace,
    model: LoadedModel,
    generation: int,
    config: Mapping[str, Any],
    head: Head,
) -> dict[str, str]:
    """The `pslora.` keys of metadata_props; config: the session's, as AdaptConfig.to_dict gives it."""
    return {
        "pslora.method": json.dumps(_method(config), sort_keys=True),
        "pslora.version": VERSION,
        EXPORTER: _exporter(model, head),
        "pslora.generation": str(generation),
        "pslora.base_digest": workspace.header.base_digest,
        "pslora.merge": config["merge"],
        "pslora.task_type": head.task_type,
        "pslora.labels": json.dumps(list(head.labels), ensure_ascii=False),
        "pslora.preparation": json.dumps(_preparation(model), sort_keys=True),
    }


def _exporter(model: LoadedModel, head: Head) -> str:
    """What the graph follows from, beside the model: where two files agree here, so do their graphs."""
    names = [*_TRACERS, *(["transformers"] if model.source.kind == "huggingface" else [])]
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    return f"{versions}{'; features of norm 1' if head.normalize else ''}"


def _method(config: Mapping[str, Any]) -> dict[str, Any]:
    """What decided how the weights came about: rank and scaling, stability loss, merge, head."""
    lora = {name: value for name, value in config["lora"].items() if name != "target_modules"}
    return {"lora": lora, **{name: config[name] for name in ("stability", "merge", "head")}}


def _preparation(model: LoadedModel) -> dict[str, Any]:
    """How raw data become the file's inputs: what a device has to do before it runs the file."""
    options = model.source.options
    return {
        "modality": model.source.modality,
        **{name: options[name] for name in PREPARATION if options.get(name)},
    }
