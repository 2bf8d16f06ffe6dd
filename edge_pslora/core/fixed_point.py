"""Factors in fixed point: one, two or three bytes for each number, one float32 scale for each component.

A component l is a column of `left` [out, k] with its row of `right` [k, in]. With m bytes its numbers
are codes in [-(2^(8m-1) - 1), 2^(8m-1) - 1] times the scale, so a number is off by half a scale at
most. Components come in the order of falling energy and so do their bytes: (n_1, n_2, n_3), the
numbers of components with at least one, two and three bytes, says it all.
"""

from __future__ import annotations

from itertools import pairwise

import torch

MAX_PLANES = 3
SCALE_BYTES = 8  # two float32 scales a component

Planes = tuple[int, int, int]  # components with at least 1, 2, 3 bytes a number; never rising


def component_bytes(shape: tuple[int, int]) -> int:
    """What the first byte of a component of a layer [out, in] costs, its two scales included."""
    return shape[0] + shape[1] + SCALE_BYTES


def packed_bytes(shape: tuple[int, int], planes: Planes) -> int:
    """The length of `pack`'s result."""
    return sum(planes) * (shape[0] + shape[1]) + planes[0] * SCALE_BYTES


def pack(left: torch.Tensor, right: torch.Tensor, planes: Planes) -> torch.Tensor:
    """Rounds factors left [out, k], right [k, in] to fixed point; k = planes[0].

    Returns:
        uint8 [packed_bytes]: the scales of left, those of right, then the codes, the components with
        the most bytes first, little-endian. Equal input gives equal bytes.
    """
    sides = [(left.T, _scales(left.T, planes)), (right, _scales(right, planes))]
    parts = [scales.view(torch.uint8) for _, scales in sides]
    for first, last, width in _groups(planes):
        for rows, scales in sides:
            codes = _codes(rows[first:last].double(), scales[first:last], width)
            parts.append(codes.view(torch.uint8).reshape(*codes.shape, 4)[..., :width].reshape(-1))
    return torch.cat([part.reshape(-1) for part in parts])


def unpack(
    packed: torch.Tensor, shape: tuple[int, int], planes: Planes
) -> tuple[torch.Tensor, torch.Tensor]:
    """The float32 factors left [out, k], right [k, in] that `packed` stands for; exact, every time."""
    k = planes[0]
    if k == 0:  # an empty array read from a file has a stride that no view takes
        return torch.zeros(shape[0], 0), torch.zeros(0, shape[1])
    scales = packed[: k * SCALE_BYTES].clone().view(torch.float32).reshape(2, k)
    position = k * SCALE_BYTES
    sides: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    for first, last, width in _groups(planes):
        for side, length in enumerate(shape):
            count = (last - first) * length * width
            codes = _decode(packed[position : position + count], width).reshape(-1, length)
            sides[side].append(codes.float() * scales[side, first:last, None])
            position += count
    rows = [
        torch.cat(side) if side else torch.zeros(0, length)
        for side, length in zip(sides, shape, strict=True)
    ]
    return rows[0].T.contiguous(), rows[1]


def _groups(planes: Planes) -> list[tuple[int, int, int]]:
    """(first, last, bytes) of the components with three, two and one bytes; empty groups left out."""
    ends = (0, *reversed(planes))
    return [
        (first, last, MAX_PLANES - index)
        for index, (first, last) in enumerate(pairwise(ends))
        if last > first
    ]


def _largest_code(width: int) -> int:
    return int(2 ** (8 * width - 1) - 1)


def _scales(rows: torch.Tensor, planes: Planes) -> torch.Tensor:
    """float32 [k]: the largest number of each component over the largest code."""
    scales = torch.zeros(len(rows), dtype=torch.float32)
    for first, last, width in _groups(planes):
        scales[first:last] = (rows[first:last].abs().amax(dim=1) / _largest_code(width)).float()
    return scales


def _codes(rows: torch.Tensor, scales: torch.Tensor, width: int) -> torch.Tensor:
    """int32 [components, length]; a component of zeros has scale zero and codes zero."""
    steps = scales.double()[:, None]
    codes = torch.where(steps > 0, rows / steps.clamp_min(torch.finfo(torch.float32).tiny), 0.0)
    largest = _largest_code(width)
    return codes.round().clamp(-largest, largest).to(torch.int32).contiguous()


def _decode(packed: torch.Tensor, width: int) -> torch.Tensor:
    """int32 from `width` little-endian bytes each, the sign carried up."""
    wide = torch.zeros(packed.numel() // width, 4, dtype=torch.uint8)
    wide[:, 4 - width :] = packed.reshape(-1, width)
    return wide.view(torch.int32).reshape(-1) >> (8 * (4 - width))
