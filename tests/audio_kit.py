"""Small recordings for tests: tones that stand for classes, written as real files."""

from __future__ import annotations

import wave
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

RATE = 8_000
# Hz of the tones that a class is made of
TONES = {"low": (220, 330), "high": (1_500, 2_100), "wide": (300, 3_000), "middle": (700, 900)}


def tone(name: str, seconds: float, seed: int, rate: int = RATE) -> npt.NDArray[np.int16]:
    """int16 [T]: the class's two tones in a random mixture, with some noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    weights = rng.uniform(0.4, 1.0, 2)
    sound = sum(
        w * np.sin(2 * np.pi * f * rng.uniform(0.95, 1.05) * time)
        for w, f in zip(weights, TONES[name], strict=True)
    )
    sound = 0.2 * sound + rng.normal(0, 0.02, len(time))
    return np.round(sound * 32_767).clip(-32_768, 32_767).astype(np.int16)


def write_wav(path: Path, samples: npt.NDArray[np.int16], rate: int = RATE) -> Path:
    """samples: int16 [T] or [T, channels]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return path


def write_tones(
    root: Path, names: Sequence[str], n: int, seed: int = 0, seconds: float = 0.3
) -> Path:
    """n recordings of about `seconds` in a folder for each name."""
    for label in names:
        for index in range(n):
            length = seconds * (0.8 + 0.4 * ((7 * index) % n) / n)
            sound = tone(label, length, seed + 1000 * sorted(TONES).index(label) + index)
            write_wav(root / label / f"{index:03}.wav", sound)
    return root
