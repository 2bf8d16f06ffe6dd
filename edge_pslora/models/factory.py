"""Base models from a user's own code: package.module:factory, with or without a weights file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edge_pslora.data.types import Samples
from edge_pslora.errors import ModelError
from edge_pslora.models.backbones import PositionalBackbone
from edge_pslora.models.encode_array import ArrayEncoder
from edge_pslora.models.encode_image import ImageEncoder, ImageSettings, three
from edge_pslora.models.head_search import HEAD_NAMES, cut, last_executed
from edge_pslora.models.hf_folder import copy_input
from edge_pslora.models.options import ModelOptions
from edge_pslora.models.probe import check_features, probe_indices, run_once
from edge_pslora.models.types import LoadedModel, ModelSource
from edge_pslora.models.user_module import build_module
from edge_pslora.models.weights import float_dtype, freeze, load_into, read_weights, write_weights
from edge_pslora.models.weights_header import WEIGHTS_FILE

DEFAULT_IMAGE_SIZE = 96


def import_factory(
    reference: str, weights: Path | None, samples: Samples, options: ModelOptions, base_dir: Path
) -> ModelSource:
    """Builds the module, writes its weights to base_dir and tries it on two samples.

    Raises:
        ModelError: the module, the weights or their fit to the data.
    """
    where = f"--model {reference}"
    require_no_tokenizer(samples, where)
    model = build_module(reference)
    if weights is not None:
        load_into(model, read_weights(weights), f"--weights {weights}")
        copy_input(weights, base_dir / WEIGHTS_FILE)
    else:
        write_weights(model, base_dir / WEIGHTS_FILE)
    chosen = describe(model, where, samples, options, base_dir)
    return ModelSource("factory", samples.modality, reference, chosen)


def load_factory(source: ModelSource, base_dir: Path) -> LoadedModel:
    """The module of an earlier session, rebuilt by its factory, with the weights of base_dir.

    Raises:
        ModelError: the factory is gone, or builds another network than it did.
    """
    return rebuild(build_module(source.reference), f"--model {source.reference}", source, base_dir)


def require_no_tokenizer(samples: Samples, where: str) -> None:
    """A module alone says nothing of tokens or of sound."""
    if samples.modality in ("text", "audio"):
        raise ModelError(
            where,
            expected="images, tables or arrays: a module does not say how it wants "
            + ("its text cut into tokens" if samples.modality == "text" else "its sound"),
            found=f"{samples.modality} data",
            remedy="use --model FOLDER (Hugging Face) or --model auto for it, or give arrays (.npz)",
        )


def describe(
    model: nn.Module,
    where: str,
    samples: Samples,
    options: ModelOptions,
    base_dir: Path,
    twin: nn.Module | None = None,
) -> dict[str, Any]:
    """ModelSource.options of a module whose weights are in base_dir, after a trial on two samples.

    twin: another form of the module, which has to compute the same to the bit.

    Raises:
        ModelError: the module does not take the samples, or yields no features.
    """
    chosen: dict[str, Any] = {"notes": []}
    if samples.modality == "image":
        chosen["image"] = _image_settings(model, options, where).to_dict()
    else:
        chosen["sample_shape"] = list(np.asarray(samples.inputs).shape[1:])
        chosen["feature_names"] = list(samples.feature_names)
    encoder = _encoder(chosen, samples.modality)
    backbone = PositionalBackbone(model, encoder.input_names)
    freeze(backbone)
    count = min(2, len(samples))
    inputs = encoder.encode(samples.take(probe_indices(samples))).batch(np.arange(count))
    if twin is not None:
        _require_equal(backbone, PositionalBackbone(twin, encoder.input_names), inputs, where)
    chosen["head_module"] = options.head_module or _own_head(model, backbone, inputs, where)
    if chosen["head_module"] is not None:
        _cut_last(model, backbone, inputs, chosen["head_module"], where)
        chosen["notes"] = [
            f"The module's last layer {chosen['head_module']} is replaced by a head."
        ]
    output = run_once(backbone, inputs, where)
    chosen["feature_size"] = check_features(output, count, where)
    chosen["file_dtype"] = float_dtype(read_weights(base_dir / WEIGHTS_FILE))
    return chosen


def rebuild(model: nn.Module, where: str, source: ModelSource, base_dir: Path) -> LoadedModel:
    """The module, with the weights of base_dir, as `describe` decided.

    Raises:
        ModelError: the weights are damaged or belong to another module.
    """
    chosen = source.options
    tensors = read_weights(base_dir / WEIGHTS_FILE)
    load_into(model, tensors, f"{where}, weights of {base_dir}")
    if chosen["head_module"] is not None:
        cut(model, chosen["head_module"])
    encoder = _encoder(chosen, source.modality)
    backbone = PositionalBackbone(model, encoder.input_names)
    freeze(backbone)
    return LoadedModel(
        backbone=backbone,
        encoder=encoder,
        feature_size=int(chosen["feature_size"]),
        source=source,
        dynamic_axes=dict.fromkeys(encoder.input_names, ("batch",)),
        file_names={name: name for name in model.state_dict() if name in tensors},
        file_dtype=chosen["file_dtype"],
        notes=tuple(chosen["notes"]),
    )


def _encoder(chosen: dict[str, Any], modality: str) -> ImageEncoder | ArrayEncoder:
    if modality == "image":
        return ImageEncoder(ImageSettings.from_dict(chosen["image"]))
    return ArrayEncoder(tuple(chosen["sample_shape"]), tuple(chosen["feature_names"]))


def _require_equal(
    one: nn.Module, other: nn.Module, inputs: dict[str, torch.Tensor], where: str
) -> None:
    freeze(other)
    found, wanted = (run_once(module, inputs, where) for module in (one, other))
    pair = isinstance(found, torch.Tensor) and isinstance(wanted, torch.Tensor)
    if pair and not torch.equal(found, wanted):  # type: ignore[arg-type]
        raise ModelError(
            where,
            expected="layers that compute to the bit what the graph does",
            found="another output",
            remedy="this is a defect: report it",
        )


def _own_head(
    model: nn.Module, backbone: nn.Module, inputs: dict[str, torch.Tensor], where: str
) -> str | None:
    """The classifier that the module ends with, if it is a Linear with a usual name."""
    last, _ = last_executed(model, inputs, backbone, where)
    if last is None or not isinstance(model.get_submodule(last), nn.Linear):
        return None
    usual = bool(HEAD_NAMES & set(last.split(".")))
    return last if usual and _is_output(model, backbone, inputs, last, where) else None


def _cut_last(
    model: nn.Module, backbone: nn.Module, inputs: dict[str, torch.Tensor], name: str, where: str
) -> None:
    """Cuts the named Linear; what it yields must be what the module yields."""
    linear = cut(model, name)
    model.set_submodule(name, linear)
    if not _is_output(model, backbone, inputs, name, where):
        raise ModelError(
            where,
            expected=f"{name} to be the last step of forward",
            found="an output that is not what this layer yields",
            remedy="name the last Linear as head module, or let forward return features",
        )
    cut(model, name)


def _is_output(
    model: nn.Module, backbone: nn.Module, inputs: dict[str, torch.Tensor], name: str, where: str
) -> bool:
    """Whether the module returns that layer's output unchanged (no softmax after it)."""
    seen: list[torch.Tensor] = []
    handle = model.get_submodule(name).register_forward_hook(lambda _m, _i, o: seen.append(o))
    try:
        # by the wrapper's own call; a plain [N, C] output passes through its pooling as it is
        output = run_once(backbone, inputs, where)
    finally:
        handle.remove()
    if not seen or not isinstance(output, torch.Tensor):
        return False
    return output.shape == seen[-1].shape and torch.equal(output, seen[-1])


def _image_settings(model: nn.Module, options: ModelOptions, where: str) -> ImageSettings:
    """The user's options, else the module's attributes, else 96 pixels in [-1, 1]."""
    mean, std = options.image_mean, options.image_std
    try:
        own_size: Any = getattr(model, "image_size", DEFAULT_IMAGE_SIZE)
        size = options.image_size or int(own_size)
        return ImageSettings(
            size=size,
            resize_to=size,
            mean=three(getattr(model, "image_mean", 0.5) if mean is None else mean),
            std=three(getattr(model, "image_std", 0.5) if std is None else std),
        )
    except (TypeError, ValueError) as error:
        raise ModelError(
            where,
            expected="image_size as one number, image_mean and image_std as one or three",
            found=str(error),
            remedy="correct the module's attributes",
        ) from error
