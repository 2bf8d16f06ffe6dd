"""A few pictures of a folder, decoded in full within a short time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from edge_pslora.data.images import image_problem
from edge_pslora.data.options import ReadOptions
from edge_pslora.data.source import shown
from edge_pslora.inspection.facts import MediaSample

SECONDS = 0.3
FIRST = 3  # problems that are told


def decode_some(
    paths: Sequence[Path], options: ReadOptions, seconds: float = SECONDS
) -> MediaSample:
    """Decodes the pictures in a random (repeatable) order until the time is over; at least one."""
    end = time.monotonic() + seconds
    checked, problems = 0, []
    sizes: set[tuple[int, int]] = set()
    for index in np.random.default_rng(0).permutation(len(paths)):
        path = paths[int(index)]
        problem = image_problem(path, replace(options, decode=True))
        if problem is None:
            sizes.add(_size(path))
        else:
            problems.append((shown(path), problem))
        checked += 1
        if time.monotonic() > end:
            break
    by_area = sorted(sizes, key=lambda size: size[0] * size[1])
    extremes = tuple(dict.fromkeys(by_area[:1] + by_area[-1:]))
    return MediaSample(checked, len(paths), len(problems), tuple(problems[:FIRST]), extremes)


def _size(path: Path) -> tuple[int, int]:
    from PIL import Image

    with Image.open(path) as image:
        return image.size
