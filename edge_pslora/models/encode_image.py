"""Pictures as a model's input: uint8 in memory, scaled to floats batch by batch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edge_pslora.data.images import DECODING_ERRORS, open_image
from edge_pslora.data.source import open_input
from edge_pslora.data.types import Samples
from edge_pslora.errors import DataError, InputError
from edge_pslora.models.image_settings import BILINEAR as BILINEAR
from edge_pslora.models.image_settings import ImageSettings as ImageSettings
from edge_pslora.models.image_settings import three as three

INPUT_NAME = "pixel_values"


@dataclass(frozen=True)
class EncodedImages:
    """pixels: uint8 [N, 3, S, S]."""

    pixels: npt.NDArray[np.uint8]
    settings: ImageSettings

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, indices: npt.NDArray[np.int64]) -> dict[str, torch.Tensor]:
        values = torch.from_numpy(self.pixels[indices]).to(torch.float32).div_(255.0)
        mean = torch.tensor(self.settings.mean).view(3, 1, 1)
        std = torch.tensor(self.settings.std).view(3, 1, 1)
        return {INPUT_NAME: values.sub_(mean).div_(std)}

    def lengths(self) -> npt.NDArray[np.int64]:
        return np.ones(len(self.pixels), np.int64)

    def to_arrays(self, indices: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]]:
        return {INPUT_NAME: self.pixels[indices]}


@dataclass(frozen=True)
class ImageEncoder:
    """Decodes files with Pillow (extra `images`)."""

    settings: ImageSettings

    @property
    def input_names(self) -> tuple[str, ...]:
        return (INPUT_NAME,)

    def encode(self, samples: Samples) -> EncodedImages:
        """Raises DataError: other data than images, or a file that no longer decodes."""
        if samples.modality != "image":
            raise DataError(
                "DATA",
                expected="images, as in the first session",
                found=f"{samples.modality} data",
                remedy="use a new --workspace for another kind of data",
            )
        size = self.settings.size
        pixels = np.empty((len(samples), 3, size, size), np.uint8)
        for row, path in enumerate(samples.inputs):
            pixels[row] = decode(Path(path), self.settings).transpose(2, 0, 1)
        return EncodedImages(pixels, self.settings)

    def from_arrays(self, arrays: dict[str, npt.NDArray[Any]]) -> EncodedImages:
        return EncodedImages(np.asarray(arrays[INPUT_NAME], np.uint8), self.settings)


def decode(path: Path, settings: ImageSettings) -> npt.NDArray[np.uint8]:
    """One picture as uint8 [S, S, 3], R, G, B; transparency is dropped.

    Raises:
        InputError: Pillow is not installed. DataError: the file does not decode, or it changed meanwhile.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise InputError(
            str(path),
            expected="Pillow, to decode images",
            found="it is not installed",
            remedy="run: pip install 'edge-pslora[images]'",
        ) from error
    with open_input(path) as stream:
        try:
            with open_image(stream) as file:
                # a palette with transparency is converted by way of RGBA, or Pillow warns
                picture: Image.Image = file.convert("RGBA") if file.mode == "P" else file.copy()
                picture = _from_16_bits(picture) if picture.mode.startswith("I") else picture
                picture = picture.convert("RGB")
        except (*DECODING_ERRORS, Image.DecompressionBombError) as error:
            raise DataError(
                str(path),
                expected="a picture that decodes",
                found=str(error) or type(error).__name__,
                remedy="remove or replace the file",
            ) from error
    width, height = _target(picture.width, picture.height, settings)
    if (picture.width, picture.height) != (width, height):
        picture = picture.resize((width, height), Image.Resampling(settings.resample))
    left, top = (width - settings.size) // 2, (height - settings.size) // 2
    # outside of the picture (a crop larger than the resized picture) crop() pads with black
    picture = picture.crop((left, top, left + settings.size, top + settings.size))
    return np.asarray(picture, np.uint8)


def _target(width: int, height: int, settings: ImageSettings) -> tuple[int, int]:
    to = settings.resize_to
    if not settings.keep_aspect:
        return to, to
    if width <= height:
        return to, max(to, int(to * height / width))
    return max(to, int(to * width / height)), to


def _from_16_bits(picture: Any) -> Any:
    from PIL import Image

    values = np.clip(np.asarray(picture, np.int64), 0, 65_535)
    return Image.fromarray((values >> 8).astype(np.uint8))
