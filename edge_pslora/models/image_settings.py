"""How pictures are prepared for a model: size and scaling. No torch, so that a folder can be inspected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

BILINEAR = 2  # the number that Pillow and transformers give it


@dataclass(frozen=True)
class ImageSettings:
    """A picture becomes [3, size, size]: resized to `resize_to`, then cut to its centre.

    keep_aspect: the shorter side becomes `resize_to`; else both sides do.
    mean, std: of pixel values in [0, 1]; the model's input is (pixel / 255 - mean) / std.
    """

    size: int
    resize_to: int
    keep_aspect: bool = False
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    resample: int = BILINEAR

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> ImageSettings:
        return ImageSettings(
            **{**values, "mean": three(values["mean"]), "std": three(values["std"])}
        )


def three(value: float | Sequence[float]) -> tuple[float, float, float]:
    """One number for each of R, G, B. Raises ValueError: neither one number nor three."""
    if isinstance(value, int | float):
        return (float(value), float(value), float(value))
    red, green, blue = (float(v) for v in value)
    return (red, green, blue)
