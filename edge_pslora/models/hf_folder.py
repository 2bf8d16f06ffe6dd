"""A Hugging Face folder on disk: what must be in it, what of it goes into the frozen base."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from edge_pslora.errors import ModelError
from edge_pslora.models.hf_shards import has_shards, shard_files, write_merged
from edge_pslora.models.image_settings import BILINEAR, ImageSettings, three
from edge_pslora.models.options import ModelOptions
from edge_pslora.models.weights_header import WEIGHTS_FILE
from edge_pslora.workspace.reading import read_limited
from edge_pslora.workspace.tensors import read_header

CONFIG_FILE = "config.json"
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
VOCABULARY_FILES = (
    *("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model"),
    "sentencepiece.bpe.model",
)
TOKENIZER_FILES = (
    *VOCABULARY_FILES,
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("merges.txt", "bpe.codes"),
)
DEFAULT_IMAGE_SIZE = 224
# counts of what has weights of its own, by the ends of their names in config.json
_COUNTS = re.compile(r"(?:layers?|depths?|blocks?|experts|stages?|num_labels)$")
_LEAST_COUNT = 64
MAX_SIDE_FILE = 64 << 20  # bytes of a configuration or of a vocabulary


def check_folder(folder: Path) -> dict[str, Any]:
    """config.json of a folder that has config.json and model.safetensors, whole or in shards.

    Raises:
        ModelError: one of them is missing or damaged; only pickled weights are there.
    """
    config = read_json(folder / CONFIG_FILE)
    weights = folder / WEIGHTS_FILE
    if not weights.is_file() and not has_shards(folder):
        others = sorted(p.name for p in folder.iterdir() if "model" in p.name and p != weights)
        raise ModelError(
            str(folder),
            expected=f"the weights in one file {WEIGHTS_FILE}",
            found=", ".join(others[:3]) or "none",
            remedy="pickles are never loaded: save it again with model.save_pretrained(folder)",
        )
    files = shard_files(folder) if has_shards(folder) else [weights]
    tensors = sum(len(read_header(file, error=ModelError).specs) for file in files)
    _check_config(config, tensors, str(folder / CONFIG_FILE))
    return config


def _check_config(config: dict[str, Any], tensors: int, where: str) -> None:
    """The fields that decide how the model is built are of their kinds, and not of a larger model.

    tensors: how many the weights consist of: a model has no more layers than that.
    """

    def require(condition: bool, expected: str, found: Any) -> None:
        if not condition:
            remedy = "give the config.json and the weights of one model"
            raise ModelError(where, expected=expected, found=ascii(found)[:80], remedy=remedy)

    names, labels = config.get("architectures"), config.get("id2label")
    texts = isinstance(names, list) and all(isinstance(name, str) for name in names)
    require(names is None or texts, "names in architectures", names)
    require(
        isinstance(config.get("model_type"), str | None), "a model_type", config.get("model_type")
    )
    require(labels is None or isinstance(labels, dict), "names by number in id2label", labels)
    most = _LEAST_COUNT + 16 * tensors
    for key, value in config.items():
        if _COUNTS.search(key):
            numbers = value if isinstance(value, list) else [value]
            good = all(not isinstance(n, int) or abs(n) <= most for n in numbers)
            require(good, f"{key} of at most {most}, for {tensors} tensors", value)


def copy_folder(folder: Path, base_dir: Path) -> None:
    """Copies config, weights (as one file), tokenizer and processor files; nothing else, no code.

    Raises:
        ModelError: a file cannot be read.
    """
    weights = folder / WEIGHTS_FILE
    if weights.is_file():
        read_header(weights, error=ModelError)  # as long as it says, before it is copied
        copy_input(weights, base_dir / WEIGHTS_FILE)
    for name in (CONFIG_FILE, *TOKENIZER_FILES, *PROCESSOR_FILES):
        if os.path.lexists(folder / name):
            content = read_limited(folder / name, MAX_SIDE_FILE, error=ModelError)
            (base_dir / name).write_bytes(content)
    if has_shards(folder):
        write_merged(folder, base_dir / WEIGHTS_FILE)


def copy_input(source: Path, target: Path) -> None:
    """A copy of a user's file in base/; not synchronised.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        shutil.copyfile(source, target)
    except (
        PermissionError,
        FileNotFoundError,
        IsADirectoryError,
        shutil.SpecialFileError,
    ) as error:
        raise ModelError(
            str(source),
            expected="a file that can be read",
            found=getattr(error, "strerror", None) or str(error),
            remedy="change its permissions, or give a regular file",
        ) from error


def image_settings(folder: Path, config: dict[str, Any], options: ModelOptions) -> ImageSettings:
    """How the folder's processor prepares pictures; the user's options win; else plain resizing.

    Raises:
        ModelError: the processor makes pictures that are not square, or its file is damaged.
    """
    found = next((folder / n for n in PROCESSOR_FILES if (folder / n).is_file()), None)
    raw = read_json(found) if found else {}
    raw = raw.get("image_processor", raw)
    where = str(found or folder / CONFIG_FILE)
    try:
        size, resize_to, keep_aspect = _geometry(raw, config)
        # (pixel * factor - offset - mean) / std, written as (pixel / 255 - mean') / std'
        factor = 255.0 * float(
            raw.get("rescale_factor", 1 / 255) if raw.get("do_rescale", True) else 1
        )
        shift = 1.0 if raw.get("rescale_offset") else 0.0
        normalise = raw.get("do_normalize", True)
        mean = three(raw.get("image_mean") or 0.5) if normalise else three(0.0)
        std = three(raw.get("image_std") or 0.5) if normalise else three(1.0)
        resample = int(raw.get("resample", BILINEAR) or 0)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            where,
            expected="an image processor for square pictures",
            found=str(error),
            remedy="give --image-size and remove the processor's file",
        ) from error
    if options.image_size:
        resize_to = round(resize_to * options.image_size / size)
        size = options.image_size
    return ImageSettings(
        size=size,
        resize_to=resize_to,
        keep_aspect=keep_aspect,
        mean=_scaled(mean, shift, factor)
        if options.image_mean is None
        else three(options.image_mean),
        std=_scaled(std, 0.0, factor) if options.image_std is None else three(options.image_std),
        resample=resample,
    )


def _scaled(
    values: tuple[float, float, float], shift: float, factor: float
) -> tuple[float, float, float]:
    red, green, blue = ((value + shift) / factor for value in values)
    return (red, green, blue)


def _geometry(raw: dict[str, Any], config: dict[str, Any]) -> tuple[int, int, bool]:
    """(final side, side to resize to, keep the aspect ratio)."""
    model_size = _side(config.get("image_size") or DEFAULT_IMAGE_SIZE)
    if not raw or not raw.get("do_resize", True):
        return model_size, model_size, False
    size: Any = raw.get("size") or model_size
    keep_aspect = isinstance(size, dict) and "shortest_edge" in size
    resize_to = int(size["shortest_edge"]) if keep_aspect else _side(size)
    if keep_aspect and raw.get("crop_pct"):  # the ConvNeXT family: no crop from 384 on
        if resize_to >= 384:
            return resize_to, resize_to, False
        return resize_to, int(resize_to / float(raw["crop_pct"])), True
    if raw.get("do_center_crop"):
        return _side(raw.get("crop_size") or resize_to), resize_to, keep_aspect
    return resize_to, resize_to, keep_aspect


def _side(size: Any) -> int:
    """The side of a square given as 224, [224, 224] or {"height": 224, "width": 224}."""
    if isinstance(size, dict):
        size = [size["height"], size["width"]]
    sides = {int(s) for s in (size if isinstance(size, list) else [size])}
    if len(sides) != 1:
        raise ValueError(f"pictures of {sorted(sides)} pixels")
    return sides.pop()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ModelError: missing, too large, no regular file, or not that."""
    try:
        if not os.path.lexists(path):
            raise ValueError("no such file")
        value = json.loads(read_limited(path, MAX_SIDE_FILE, error=ModelError).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        found = str(error)
        raise ModelError(
            str(path),
            expected="a Hugging Face folder with config.json and model.safetensors",
            found=found,
            remedy="give such a folder, 'auto', or package.module:factory",
        ) from error
    if not isinstance(value, dict):
        raise ModelError(
            str(path),
            expected="a JSON object",
            found=type(value).__name__,
            remedy="repair the file",
        )
    return value
