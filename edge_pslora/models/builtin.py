"""The built-in small networks of `--model auto`. Each maps raw inputs to features [N, WIDE].

Scaling and missing values are handled inside, so that the ONNX file takes the user's own numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

FEATURES = 128  # what a network learns, before it is widened
WIDE = 512
CLIP = 10.0  # standard deviations; an outlier of a broken sensor counts as that


class Standardize(nn.Module):
    """(x - mean) / std along `axis`, clipped; NaN becomes 0. Buffers: mean, std [size]."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, size: int, axis: int, rank: int) -> None:
        super().__init__()
        self.shape = [1] * rank
        self.shape[axis] = size
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scaled = (x - self.mean.view(self.shape)) / self.std.view(self.shape)
        return torch.where(torch.isnan(x), torch.zeros_like(x), scaled.clamp(-CLIP, CLIP))


class Widen(nn.Module):
    """f [N, size] -> [f, relu(f W)] [N, WIDE], W drawn once and never trained.

    A head that is solved finds in random nonlinear features what a small network did not learn
    (RanPAC, arXiv 2307.02251, Eq. 6; figures in benchmarks/LOG.md, 2026-11-26).
    """

    drawn: torch.Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("drawn", torch.randn(size, WIDE - size) * size**-0.5)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return torch.cat([features, torch.relu(features @ self.drawn)], 1)


class TableNet(nn.Module):
    """x [N, F], NaN = missing: values and missing flags through two hidden layers.

    The flags' weights start at zero: a column that is complete in the first data adds no noise
    when values go missing later.
    """

    def __init__(self, columns: int, width: int) -> None:
        super().__init__()
        self.scale = Standardize(columns, axis=1, rank=2)
        self.fc1 = nn.Linear(2 * columns, width)
        self.norm1 = nn.LayerNorm(width)
        self.fc2 = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.act = nn.GELU()
        self.drop = nn.Dropout(0.1)
        with torch.no_grad():
            self.fc1.weight[:, columns:] = 0.0
        self.widen = Widen(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = torch.cat([self.scale(x), torch.isnan(x).to(x.dtype)], 1)
        hidden: torch.Tensor = self.act(self.norm1(self.fc1(rows)))
        more: torch.Tensor = self.act(self.norm2(self.fc2(self.drop(hidden))))
        features: torch.Tensor = self.widen(hidden + more)
        return features


class ConvNet(nn.Module):
    """Pictures and grids: x -> [N, C, H, W] -> one 3x3 convolution a stage -> mean over positions.

    layout: "chw", "hwc", "hw" (one channel), "tc" or "ct" (a sequence with channels, as a picture
    of height T and width 1). strides: of the stages; their widths double from 32 to FEATURES.
    """

    def __init__(self, channels: int, layout: str, strides: Sequence[int]) -> None:
        super().__init__()
        self.layout = layout
        kernel, padding = ((5, 1), (2, 0)) if layout in ("tc", "ct") else ((3, 3), (1, 1))
        self.scale = Standardize(channels, axis=1, rank=4)
        stages: list[nn.Module] = []
        size = channels
        for index, stride in enumerate(strides):
            width = FEATURES if index == len(strides) - 1 else min(FEATURES, 32 * 2**index)
            step = (stride, 1) if layout in ("tc", "ct") else (stride, stride)
            stages.append(nn.Conv2d(size, width, kernel, step, padding, bias=False))
            stages += [nn.BatchNorm2d(width), nn.ReLU()]
            size = width
        self.stages = nn.Sequential(*stages)
        self.widen = Widen(size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps: torch.Tensor = self.stages(self.scale(channels_first(x, self.layout)))
        features: torch.Tensor = self.widen(maps.mean((2, 3)))
        return features


class TextNet(nn.Module):
    """Hashed ids [N, T] and mask [N, T]: mean of their embeddings, then one hidden layer."""

    def __init__(self, buckets: int, size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(buckets, size, padding_idx=0)
        # far smaller than torch's own: what little a word was seen then outweighs its initial noise
        nn.init.normal_(self.embedding.weight, std=0.1)
        with torch.no_grad():
            self.embedding.weight[0] = 0.0
        self.norm = nn.LayerNorm(size)
        self.fc1 = nn.Linear(size, FEATURES)
        self.fc2 = nn.Linear(FEATURES, FEATURES)
        self.act = nn.GELU()
        self.drop = nn.Dropout(0.1)
        self.widen = Widen(FEATURES)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        mask = attention_mask.to(self.embedding.weight.dtype).unsqueeze(-1)
        summed = (self.embedding(input_ids) * mask).sum(1)
        hidden: torch.Tensor = self.act(self.fc1(self.norm(summed / mask.sum(1).clamp(min=1.0))))
        more: torch.Tensor = self.act(self.fc2(self.drop(hidden)))
        features: torch.Tensor = self.widen(hidden + more)
        return features


def channels_first(x: torch.Tensor, layout: str) -> torch.Tensor:
    """Samples of that layout as [N, C, H, W]."""
    if layout == "hw":
        return x.unsqueeze(1)
    if layout == "hwc":
        return x.permute(0, 3, 1, 2)
    if layout == "tc":
        return x.transpose(1, 2).unsqueeze(-1)
    if layout == "ct":
        return x.unsqueeze(-1)
    return x
