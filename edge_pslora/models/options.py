"""How the user wants a model to be loaded."""

from __future__ import annotations

from dataclasses import dataclass

from edge_pslora.errors import UsageError


@dataclass(frozen=True)
class ModelOptions:
    """Settings of the first session; what they lead to is kept in ModelSource.options.

    max_length: tokens of a text that are kept (capped by the model's own limit).
    image_size: side of the square picture in pixels. image_mean, image_std: scaling of pixel values
        in [0, 1], one number or one for each of R, G, B. None: as the model says, else its default.
    clip_seconds: how much of a recording is kept, from its start.
    head_module: dotted name of the Linear that a factory's module ends with, to be cut off.
    seed: of the built-in networks' initial weights and fitting.
    """

    max_length: int = 128
    image_size: int | None = None
    image_mean: float | tuple[float, float, float] | None = None
    image_std: float | tuple[float, float, float] | None = None
    clip_seconds: float | None = None
    head_module: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _require(2 <= self.max_length <= 65_536, "--max-length", "2 to 65536", self.max_length)
        size = self.image_size
        _require(size is None or 8 <= size <= 2048, "--image-size", "8 to 2048", size)
        seconds = self.clip_seconds
        _require(seconds is None or 0.1 <= seconds <= 600, "--clip-seconds", "0.1 to 600", seconds)
        stds = self.image_std if isinstance(self.image_std, tuple) else (self.image_std,)
        positive = all(std is None or std > 0 for std in stds)
        _require(positive, "--image-std", "positive numbers", self.image_std)


def _require(condition: bool, where: str, expected: str, found: object) -> None:
    if not condition:
        raise UsageError(where, expected=expected, found=repr(found), remedy="change the option")
