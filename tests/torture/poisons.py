"""What sessions are made of: handwritten digits, what is done to them, and what was learned before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_pslora.demo_data import load_digits

FULL_INK = 16
TEST = 600

Images = npt.NDArray[np.float32]  # [N, 64] in [0, 1]
Labels = npt.NDArray[np.int64]
Change = Callable[[Images, Labels, int], tuple[Images, Labels]]  # images, labels, seed

ALL, LOW, HIGH = tuple(range(10)), (0, 1, 2, 3, 4), (5, 6, 7, 8, 9)


@dataclass(frozen=True)
class Start:
    """past: digits and number of images of each clean session; next: those of the session to be tried.
    seeds: how many streams of its own."""

    past: tuple[tuple[tuple[int, ...], int], ...]
    next: tuple[tuple[int, ...], int]
    seeds: int = 20


STARTS: Mapping[str, Start] = {
    "one session": Start(((ALL, 200),), (ALL, 200)),
    "two sessions": Start(((ALL, 200), (ALL, 200)), (ALL, 200)),
    "small sessions": Start(((ALL, 100), (ALL, 100)), (ALL, 100), seeds=5),
    "many sessions": Start(((ALL, 100),) * 5, (ALL, 100), seeds=5),
    "classes in turn": Start(((LOW, 150), (HIGH, 150)), (ALL, 200)),
    "new classes": Start(((LOW, 200),), (HIGH, 200)),
    "new beside old": Start(((LOW, 150),), (ALL, 150), seeds=5),
    "few of many": Start(((ALL, 200), (ALL, 200)), ((3, 8, 9), 100), seeds=5),
}


@dataclass(frozen=True)
class Digits:
    """No image is in two of them; the test holds only what the past has shown."""

    past: tuple[tuple[Images, Labels], ...]
    next: tuple[Images, Labels]
    seed: int
    test_images: Images
    test_labels: Labels


def digits_for(start: Start, seed: int) -> Digits:
    images, labels = load_digits()
    ink = images.reshape(len(images), -1).astype(np.float32) / FULL_INK
    order = np.random.default_rng(seed).permutation(len(labels))
    test, free = order[:TEST], order[TEST:]
    parts = []
    rng = np.random.default_rng([seed, 1])
    for digits, count in (*start.past, start.next):
        rows = rng.permutation(free[np.isin(labels[free], digits)])[:count]
        free = free[~np.isin(free, rows)]
        parts.append((ink[rows], labels[rows]))
    known = sorted({digit for digits, _ in start.past for digit in digits})
    test = test[np.isin(labels[test], known)]
    return Digits(tuple(parts[:-1]), parts[-1], seed, ink[test], labels[test])


def write_session(path: Path, x: Images, y: Labels) -> Path:
    np.savez(path, x=x, y=y)
    return path


def _flipped(share: float) -> Change:
    """That share of the labels becomes any other of the session's."""

    def change(x: Images, y: Labels, seed: int) -> tuple[Images, Labels]:
        rng, labels, wrong = np.random.default_rng(seed), np.unique(y), y.copy()
        for row in rng.permutation(len(y))[: round(share * len(y))]:
            wrong[row] = rng.choice(labels[labels != y[row]])
        return x, wrong

    return change


def _rotated(x: Images, y: Labels, seed: int) -> tuple[Images, Labels]:
    """Every digit is called by the name of the next: wrong, and easy to learn."""
    labels = np.unique(y)
    return x, labels[(np.searchsorted(labels, y) + 1) % len(labels)]


def _shuffled(x: Images, y: Labels, seed: int) -> tuple[Images, Labels]:
    return x, np.random.default_rng(seed).permutation(y)


def _noise(x: Images, y: Labels, seed: int) -> tuple[Images, Labels]:
    return np.random.default_rng(seed).random(x.shape, dtype=np.float32), y


def _loud_noise(x: Images, y: Labels, seed: int) -> tuple[Images, Labels]:
    return 3 * np.random.default_rng(seed).standard_normal(x.shape, dtype=np.float32), y


def _repeated(right: bool, spread: float = 0.0) -> Change:
    """One image again and again, under its own label or another one."""

    def change(x: Images, y: Labels, seed: int) -> tuple[Images, Labels]:
        others = np.unique(y[y != y[0]])
        noise = np.random.default_rng(seed).standard_normal(x.shape, dtype=np.float32)
        label = y[0] if right else others[0]
        return x[:1] + spread * noise, np.full_like(y, label)

    return change


def _one_label(x: Images, y: Labels, seed: int) -> tuple[Images, Labels]:
    return x, np.full_like(y, y.min())


def _blurred_by_noise(x: Images, y: Labels, seed: int) -> tuple[Images, Labels]:
    noise = np.random.default_rng(seed).standard_normal(x.shape, dtype=np.float32)
    return np.clip(x + 0.1 * noise, 0, 1), y


POISONED: Mapping[str, Change] = {
    "labels flipped, 20 %": _flipped(0.2),
    "labels flipped, 40 %": _flipped(0.4),
    "labels flipped, 100 %": _flipped(1.0),
    "labels rotated": _rotated,
    "labels shuffled": _shuffled,
    "garbage images": _noise,
    "garbage images, large values": _loud_noise,
    "one row repeated": _repeated(right=True),
    "one row repeated, wrong label": _repeated(right=False),
    "one row with noise, wrong label": _repeated(right=False, spread=0.01),
    "one label for all": _one_label,
}
HONEST: Mapping[str, Change] = {
    "more of the same": lambda x, y, seed: (x, y),
    "white on black": lambda x, y, seed: (1 - x, y),
    "faint ink": lambda x, y, seed: (0.6 * x, y),
    "thin strokes": lambda x, y, seed: (np.clip(1.5 * x - 0.5, 0, 1), y),
    "noisy scanner": _blurred_by_noise,
}
