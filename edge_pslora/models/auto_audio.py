"""The built-in network for recordings: log-mel energies of a fixed length, a few convolutions."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from edge_pslora.data.types import Samples
from edge_pslora.models.audio_forms import Bands, frame_count, frame_samples
from edge_pslora.models.builtin import FEATURES, Standardize, Widen
from edge_pslora.models.encode_audio import LONGEST_SECONDS, AudioEncoder, usual_length
from edge_pslora.models.options import ModelOptions

BANDS = 40
RATES = (8_000, 16_000)  # lowest and highest that the network works at; others are resampled
WIDTHS = (32, 64, FEATURES // 2)


class AudioNet(nn.Module):
    """x [N, frames, bands] -> [N, WIDE]: convolutions, then mean and maximum over time.

    Each stage halves time and pitch; what is left of pitch is folded into the last channels.
    """

    def __init__(self, bands: int) -> None:
        super().__init__()
        self.scale = Standardize(bands, axis=2, rank=3)
        stages: list[nn.Module] = []
        size = 1
        for width in WIDTHS:
            stages.append(nn.Conv2d(size, width, 3, 2, 1, bias=False))
            stages += [nn.BatchNorm2d(width), nn.ReLU()]
            size, bands = width, (bands + 1) // 2
        self.stages = nn.Sequential(*stages)
        self.fold = nn.Conv2d(size, FEATURES // 2, (3, bands), 1, (1, 0), bias=False)
        self.norm = nn.BatchNorm2d(FEATURES // 2)
        self.act = nn.ReLU()
        self.widen = Widen(FEATURES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps: torch.Tensor = self.stages(self.scale(x).unsqueeze(1))
        times = self.act(self.norm(self.fold(maps))).squeeze(3)
        features: torch.Tensor = self.widen(torch.cat([times.mean(2), times.amax(2)], 1))
        return features


def choose_audio(samples: Samples, options: ModelOptions) -> dict[str, Any]:
    """Sample rate and length of the first session's recordings, for this and all later ones."""
    usual, rate = usual_length(samples)
    rate = min(max(rate, RATES[0]), RATES[1])
    seconds = options.clip_seconds or min(usual, LONGEST_SECONDS)
    longest = max(round(seconds * rate), frame_samples(rate))
    note = (
        f"The first {longest / rate:g} seconds of each recording are used, at {rate} Hz "
        "(--clip-seconds)."
    )
    return {
        "net": "audio",
        "rate": rate,
        "longest": longest,
        "bands": BANDS,
        "frames": frame_count(longest, rate),
        "clip_note": note,
    }


def audio_encoder(chosen: dict[str, Any]) -> AudioEncoder:
    rate = int(chosen["rate"])
    form = Bands(rate, int(chosen["bands"]), int(chosen["frames"]))
    return AudioEncoder(form, rate, int(chosen["longest"]), frame_samples(rate))
