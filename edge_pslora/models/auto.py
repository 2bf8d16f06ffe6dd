"""`--model auto`: a small network chosen by the kind of data and fitted to its first samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edge_pslora.data.types import Samples
from edge_pslora.errors import ModelError
from edge_pslora.models.auto_audio import AudioNet, audio_encoder, choose_audio
from edge_pslora.models.backbones import PositionalBackbone
from edge_pslora.models.builtin import (
    FEATURES,
    WIDE,
    ConvNet,
    Standardize,
    TableNet,
    TextNet,
    channels_first,
)
from edge_pslora.models.encode_array import ArrayEncoder
from edge_pslora.models.encode_audio import VALUES, EncodedAudio
from edge_pslora.models.encode_image import ImageEncoder, ImageSettings, three
from edge_pslora.models.encode_text import TextEncoder
from edge_pslora.models.fit import fit_base, seeded
from edge_pslora.models.hash_tokens import HashTokenizer
from edge_pslora.models.options import ModelOptions
from edge_pslora.models.probe import check_features, probe_indices, run_once
from edge_pslora.models.types import Encoder, LoadedModel, ModelSource
from edge_pslora.models.weights import freeze, load_into, read_weights, write_weights
from edge_pslora.models.weights_header import WEIGHTS_FILE

WHERE = "--model auto"
DEFAULT_IMAGE_SIZE = 64
TEXT_BUCKETS = 16_384
IDS_PER_TOKEN = 4  # hashed ids that stand for one token of max_length


def import_auto(samples: Samples, options: ModelOptions, base_dir: Path) -> ModelSource:
    """Chooses a network for the samples, fits it to them and writes its weights to base_dir.

    Raises:
        ModelError: arrays of a shape that no built-in network takes.
    """
    if samples.task_type == "language":
        raise ModelError(
            WHERE,
            expected="data with labels or values to learn",
            found="texts alone, which a language model goes on learning from",
            remedy="give the folder of a causal language model, or name the labels with --label-column",
        )
    chosen = _choose(samples, options)
    chosen["notes"] = [
        f"A built-in {chosen['net']} network was fitted to the first session's data.",
        *([chosen["clip_note"]] if "clip_note" in chosen else []),
    ]
    with seeded(options.seed):
        model = _build(chosen)
    encoder = _encoder(chosen, samples)
    inputs = encoder.encode(samples)
    if isinstance(samples.inputs, np.ndarray):
        _set_scale(model, np.asarray(samples.inputs, np.float32))
    elif isinstance(inputs, EncodedAudio) and inputs.kept is not None:
        _set_scale(model, inputs.kept[VALUES].flatten(0, 1).numpy())
    backbone = PositionalBackbone(model, encoder.input_names)
    fit_base(backbone, inputs, samples, chosen["feature_size"], options.seed)
    freeze(backbone)
    write_weights(model, base_dir / WEIGHTS_FILE)
    indices = probe_indices(samples)
    output = run_once(backbone, inputs.batch(indices), WHERE)
    check_features(output, len(indices), WHERE)
    return ModelSource("auto", samples.modality, "", chosen)


def load_auto(source: ModelSource, base_dir: Path) -> LoadedModel:
    """The network of an earlier session with its fitted weights.

    Raises:
        ModelError: the base folder's weights are damaged.
    """
    model = _build(source.options)
    load_into(model, read_weights(base_dir / WEIGHTS_FILE), str(base_dir / WEIGHTS_FILE))
    encoder = _encoder(source.options, None)
    backbone = PositionalBackbone(model, encoder.input_names)
    freeze(backbone)
    axes = ("batch", "sequence") if source.modality == "text" else ("batch",)
    return LoadedModel(
        backbone=backbone,
        encoder=encoder,
        feature_size=int(source.options["feature_size"]),
        source=source,
        dynamic_axes=dict.fromkeys(encoder.input_names, axes),
        file_names={name: name for name in model.state_dict()},
        notes=tuple(source.options["notes"]),
    )


def layout_of(shape: tuple[int, ...]) -> tuple[str, int, int]:
    """(layout, channels, shorter side of what is convolved) for samples of that shape.

    [C, H, W], or [H, W, C] where only the last axis is at most four long. Two axes are a picture
    [H, W] when neither is more than twice the other; else a sequence whose longer axis is time
    (50 readings of 6 sensors: [50, 6] or [6, 50]).

    Raises:
        ModelError: more than three axes.
    """
    if len(shape) == 3:
        if shape[2] <= 4 < shape[0]:
            return "hwc", shape[2], min(shape[:2])
        return "chw", shape[0], min(shape[1:])
    if len(shape) == 2:
        if max(shape) <= 2 * min(shape):
            return "hw", 1, min(shape)
        return ("tc", shape[1], shape[0]) if shape[0] > shape[1] else ("ct", shape[0], shape[1])
    raise ModelError(
        WHERE,
        expected="samples with one, two or three axes",
        found=f"shape {list(shape)}",
        remedy="reshape x, or use package.module:factory",
    )


def _choose(samples: Samples, options: ModelOptions) -> dict[str, Any]:
    if samples.modality == "text":
        chosen: dict[str, Any] = {"net": "text", "buckets": TEXT_BUCKETS, "embedding": 64}
        chosen["max_ids"] = options.max_length * IDS_PER_TOKEN
    elif samples.modality == "image":
        size = options.image_size or DEFAULT_IMAGE_SIZE
        mean = three(0.5 if options.image_mean is None else options.image_mean)
        std = three(0.5 if options.image_std is None else options.image_std)
        chosen = {"net": "image", "channels": 3, "layout": "chw", "strides": strides_for(size)}
        chosen["image"] = ImageSettings(size, size, mean=mean, std=std).to_dict()
    elif samples.modality == "audio":
        chosen = choose_audio(samples, options)
    else:
        shape = np.asarray(samples.inputs).shape[1:]
        if len(shape) == 1:
            width = 64 if len(samples) < 1000 else FEATURES
            chosen = {"net": "table", "columns": int(shape[0]), "width": width}
        else:
            layout, channels, side = layout_of(shape)
            chosen = {"net": "array", "channels": channels, "layout": layout}
            chosen["strides"] = strides_for(side)
        chosen["sample_shape"] = [int(n) for n in shape]
        chosen["feature_names"] = list(samples.feature_names)
    return {**chosen, "feature_size": WIDE}


def strides_for(side: int) -> list[int]:
    """Stages of a ConvNet: halve while the side is over 4; a small one starts at full size."""
    strides = [1] if side <= 32 else [2]
    rest = side // strides[0]
    while rest > 4 and len(strides) < 5:
        strides.append(2)
        rest //= 2
    return strides if len(strides) > 1 else [*strides, 1]


def _build(chosen: dict[str, Any]) -> nn.Module:
    if chosen["net"] == "table":
        return TableNet(int(chosen["columns"]), int(chosen["width"]))
    if chosen["net"] == "text":
        return TextNet(int(chosen["buckets"]), int(chosen["embedding"]))
    if chosen["net"] == "audio":
        return AudioNet(int(chosen["bands"]))
    return ConvNet(int(chosen["channels"]), str(chosen["layout"]), list(chosen["strides"]))


def _encoder(chosen: dict[str, Any], samples: Samples | None) -> Encoder:
    if chosen["net"] == "text":
        return TextEncoder(HashTokenizer(int(chosen["buckets"]), int(chosen["max_ids"])), pad_id=0)
    if chosen["net"] == "audio":
        return audio_encoder(chosen)
    if chosen["net"] == "image":
        return ImageEncoder(ImageSettings.from_dict(chosen["image"]))
    return ArrayEncoder(tuple(chosen["sample_shape"]), tuple(chosen["feature_names"]))


def _set_scale(model: nn.Module, values: npt.NDArray[np.float32]) -> None:
    """Mean and standard deviation of each column or channel, of the values that are finite."""
    if isinstance(model, ConvNet):
        rows = channels_first(torch.from_numpy(values), model.layout).transpose(0, 1).flatten(1)
        values = rows.T.numpy()
    known = np.isfinite(values)
    counts = np.maximum(known.sum(0), 1)
    exact = np.where(known, values, 0.0).astype(np.float64)
    mean = exact.sum(0) / counts
    variance = np.where(known, (exact - mean) ** 2, 0.0).sum(0) / counts
    std = np.sqrt(variance)
    # a constant column says nothing; dividing by its rounding noise would
    std = np.where(std > 1e-6 * np.maximum(1.0, np.abs(mean)), std, 1.0)
    scale = model.scale
    assert isinstance(scale, Standardize)
    scale.mean.copy_(torch.from_numpy(mean))
    scale.std.copy_(torch.from_numpy(std))
