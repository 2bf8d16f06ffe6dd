"""Base models from a local Hugging Face folder: classification models and bare encoders.

Language models that stay ones: see huggingface_language.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from edge_pslora.data.types import Samples
from edge_pslora.errors import ModelError
from edge_pslora.models.backbones import TransformersBackbone
from edge_pslora.models.encode_audio import AudioEncoder
from edge_pslora.models.encode_image import ImageEncoder, ImageSettings
from edge_pslora.models.encode_text import TextEncoder
from edge_pslora.models.head_search import cut, find_classifier
from edge_pslora.models.hf_audio import (
    audio_axes,
    audio_note,
    audio_pooling,
    audio_settings,
    load_audio_encoder,
)
from edge_pslora.models.hf_folder import check_folder, copy_folder, image_settings, read_json
from edge_pslora.models.hf_names import require_complete, trace_names, untraced
from edge_pslora.models.hf_parts import (
    INPUTS,
    drop_pooler,
    has_head,
    load_module,
    load_tokenizer,
    position_limit,
)
from edge_pslora.models.huggingface_language import import_language, load_language
from edge_pslora.models.options import ModelOptions
from edge_pslora.models.probe import check_features, probe_indices, run_once
from edge_pslora.models.types import BaseHead, LoadedModel, ModelSource
from edge_pslora.models.weights import float_dtype, freeze, read_weights
from edge_pslora.models.weights_header import WEIGHTS_FILE
from edge_pslora.tasks import TASKS


def import_folder(
    folder: Path, samples: Samples, options: ModelOptions, base_dir: Path
) -> ModelSource:
    """Copies the folder into base_dir, tries the model on two samples and decides how it is used.

    Raises:
        ModelError: the folder, the model or its fit to the data.
    """
    where = str(folder)
    if samples.modality not in INPUTS:
        raise ModelError(
            where,
            expected="text, images or recordings, which a Hugging Face folder is for",
            found=f"{samples.modality} data",
            remedy="use --model auto or package.module:factory",
        )
    config = check_folder(folder)
    copy_folder(folder, base_dir)
    tensors = read_weights(base_dir / WEIGHTS_FILE)
    if samples.task_type == "language":
        return import_language(folder, config, tensors, samples, options, base_dir)
    chosen: dict[str, Any] = {"pooling": "", "head_module": None, "head_labels": None, "notes": []}
    if samples.modality == "image":
        chosen["image"] = image_settings(base_dir, config, options).to_dict()
    headed = has_head(config, samples.modality)
    model = _open(base_dir, samples.modality, headed, where)
    names = trace_names(model, tensors, where)
    chosen["max_length"] = min(options.max_length, position_limit(model) or options.max_length)
    if samples.modality == "audio":
        chosen["audio"] = audio_settings(base_dir, model, samples, options)
        chosen["notes"] += [audio_note(chosen["audio"])]
    encoder = _encoder(chosen, samples.modality, base_dir, model, where)
    chosen["notes"] += _token_notes(encoder, model)
    inputs = encoder.encode(samples.take(probe_indices(samples))).batch(
        np.arange(min(2, len(samples)))
    )
    if headed:
        name = find_classifier(model, inputs, where)
        if name is not None and f"{name}.weight" in names:
            head = cut(model, name)
            chosen["pooling"], chosen["head_module"] = "logits", name
            chosen["head_labels"] = head_labels(config, head.out_features, samples)
        else:
            chosen["notes"] += [
                "The model's own classifier is not used: it does not end in a Linear."
            ]
            model = _open(base_dir, samples.modality, False, where)
            names = trace_names(model, tensors, where)
    if not chosen["pooling"]:
        chosen["pooling"] = _pooling(model, inputs, names, chosen, samples.modality, where)
        if chosen["pooling"] != "pooler":
            drop_pooler(model)
    require_complete(model, names, where)
    backbone = TransformersBackbone(model, chosen["pooling"])
    features = run_once(backbone, inputs, where)
    chosen["feature_size"] = check_features(features, min(2, len(samples)), where)
    chosen["file_dtype"] = float_dtype(tensors)
    chosen["file_names"] = {name: names[name] for name in model.state_dict() if name in names}
    return ModelSource("huggingface", samples.modality, folder.resolve().name, chosen)


def load_folder(source: ModelSource, base_dir: Path) -> LoadedModel:
    """The model of a workspace's base folder, exactly as `import_folder` decided.

    Raises:
        ModelError: the base folder is damaged, or this version of transformers no longer loads it.
    """
    where, chosen = str(base_dir), source.options
    if chosen["pooling"] == "language":
        return load_language(source, base_dir)
    config = read_json(base_dir / "config.json")
    tensors = read_weights(base_dir / WEIGHTS_FILE)
    headed = chosen["head_module"] is not None
    model = _open(base_dir, source.modality, headed, where)
    base_head = None
    if headed:
        linear = cut(model, chosen["head_module"])
        if chosen["head_labels"] is not None:
            base_head = _base_head(linear, chosen["head_module"], chosen["head_labels"])
    elif chosen["pooling"] != "pooler":
        drop_pooler(model)
    # what transformers does not find in the file it would fill with random numbers
    names: dict[str, str] = chosen["file_names"]
    missing = untraced(model, names) or [n for n in names.values() if n not in tensors]
    if missing:
        raise ModelError(
            f"{where}/{WEIGHTS_FILE}",
            expected=f"every weight of {config.get('model_type')}",
            found=f"{missing[0]} missing",
            remedy="use the transformers version of the first session, or restore base/",
        )
    encoder = _encoder(chosen, source.modality, base_dir, model, where)
    axes: tuple[str, ...] = ("batch", "sequence") if source.modality == "text" else ("batch",)
    if source.modality == "audio":
        axes = audio_axes(chosen["audio"])
    backbone = TransformersBackbone(model, chosen["pooling"])
    freeze(backbone)
    return LoadedModel(
        backbone=backbone,
        encoder=encoder,
        feature_size=int(chosen["feature_size"]),
        source=source,
        base_head=base_head,
        dynamic_axes=dict.fromkeys(encoder.input_names, axes),
        file_names=dict(names),
        file_dtype=chosen["file_dtype"],
        notes=tuple(chosen["notes"]),
    )


def head_labels(config: dict[str, Any], size: int, samples: Samples) -> list[str] | None:
    """Label names of the model's own head, or None where it cannot be kept.

    A head that only says LABEL_0, LABEL_1, ... is kept when every label of the data is a number
    below its size: LABEL_i then means label "i", as transformers numbers them. With other labels
    nobody knows what its rows stand for, and they would only stand in the way as extra classes. A
    head of one output is kept for regression, any other for classification.
    """
    regression = samples.task_type == "regression"
    if regression != (size == 1):
        return None
    names = config.get("id2label") or {}
    labels = [str(names.get(str(i), f"LABEL_{i}")) for i in range(size)]
    if regression:
        return labels
    if labels == [f"LABEL_{i}" for i in range(size)]:
        numbers = [str(i) for i in range(size)]
        found = TASKS[samples.task_type].labels_in(np.asarray(samples.targets))
        return numbers if found <= set(numbers) else None
    return labels if len(set(labels)) == size else None


def _open(folder: Path, modality: str, headed: bool, where: str) -> nn.Module:
    return freeze(load_module(folder, modality=modality, headed=headed, where=where))


def _encoder(
    chosen: dict[str, Any], modality: str, base_dir: Path, model: nn.Module, where: str
) -> TextEncoder | ImageEncoder | AudioEncoder:
    if modality == "image":
        return ImageEncoder(ImageSettings.from_dict(chosen["image"]))
    if modality == "audio":
        return load_audio_encoder(chosen["audio"], where)
    return load_tokenizer(base_dir, model, int(chosen["max_length"]), where)


def _token_notes(encoder: TextEncoder | ImageEncoder | AudioEncoder, model: nn.Module) -> list[str]:
    """Padding is masked, so that another pad token changes nothing: but it is another tokenizer's."""
    own = getattr(model.config, "pad_token_id", None)
    if not isinstance(encoder, TextEncoder) or own in (None, encoder.pad_id):
        return []
    return [
        f"The tokenizer pads with the id {encoder.pad_id}, config.json says {own}: "
        "check that they belong to one model."
    ]


def _pooling(
    model: nn.Module,
    inputs: dict[str, torch.Tensor],
    names: dict[str, str],
    chosen: dict[str, Any],
    modality: str,
    where: str,
) -> str:
    """mask_mean for text, its like for sound; for images the model's pooler, if it has a trained
    one, else mean."""
    if modality == "text":
        return "mask_mean"
    if modality == "audio":
        return audio_pooling(model, chosen["audio"])
    output = cast(Any, run_once(model, inputs, where))
    trained = not any(name.startswith("pooler.") for name in untraced(model, names))
    pooled = getattr(output, "pooler_output", None)
    return "pooler" if trained and pooled is not None else "mean"


def _base_head(linear: nn.Linear, name: str, labels: list[str]) -> BaseHead:
    weight = linear.weight.detach().clone()
    bias = linear.bias
    return BaseHead(
        labels=tuple(labels),
        weight=weight,
        bias=torch.zeros(len(weight)) if bias is None else bias.detach().clone(),
        module_name=name,
        has_bias=bias is not None,
    )
