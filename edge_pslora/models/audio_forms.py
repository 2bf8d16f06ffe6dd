"""What models are given of a sound: its samples, or the logarithm of its energy in mel bands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from edge_pslora.errors import InputError
from edge_pslora.models.encode_audio import MASK, VALUES, Wave

FRAME_SECONDS, HOP_SECONDS = 0.025, 0.010
LOWEST_HZ = 20.0


@dataclass(frozen=True)
class Waves:
    """Samples for Wav2Vec2 and its kind.

    normalise: each wave to mean 0 and variance 1, as transformers' feature extractor does.
    with_mask: the model is told where the padding is. Without that, its features would depend on the
    other waves of a batch: all are then padded to `length` samples.
    """

    normalise: bool
    with_mask: bool
    length: int

    @property
    def input_names(self) -> tuple[str, ...]:
        return (VALUES, MASK) if self.with_mask else (VALUES,)

    @property
    def ragged(self) -> bool:
        return self.with_mask

    @property
    def kept(self) -> bool:
        return False

    def __call__(self, waves: Sequence[Wave]) -> dict[str, torch.Tensor]:
        """input_values: float32 [K, T]; attention_mask: int64 [K, T]."""
        lengths = np.array([len(wave) for wave in waves])
        longest = int(lengths.max(initial=1)) if self.with_mask else self.length
        values = np.zeros((len(waves), longest), np.float32)
        for row, wave in enumerate(waves):
            values[row, : len(wave)] = _normalised(wave) if self.normalise else wave
        inputs = {VALUES: torch.from_numpy(values)}
        if self.with_mask:
            mask = np.arange(longest) < lengths[:, None]
            inputs[MASK] = torch.from_numpy(mask.astype(np.int64))
        return inputs


def _normalised(wave: Wave) -> Wave:
    exact = wave.astype(np.float64)
    return np.asarray((exact - exact.mean()) / np.sqrt(exact.var() + 1e-7), np.float32)


@dataclass(frozen=True)
class Bands:
    """Log-mel energies for the built-in network: [frames, bands], 25 ms every 10 ms.

    The mean of a recording is taken off, so that its loudness does not count; beyond its end are
    zeros.
    """

    rate: int
    bands: int
    frames: int

    @property
    def input_names(self) -> tuple[str, ...]:
        return (VALUES,)

    @property
    def ragged(self) -> bool:
        return False

    @property
    def kept(self) -> bool:
        return True

    def __call__(self, waves: Sequence[Wave]) -> dict[str, torch.Tensor]:
        """input_values: float32 [K, frames, bands]."""
        values = np.zeros((len(waves), self.frames, self.bands), np.float32)
        for row, wave in enumerate(waves):
            energies = log_mel(wave, self.rate, self.bands)[: self.frames]
            values[row, : len(energies)] = energies - energies.mean(dtype=np.float64)
        return {VALUES: torch.from_numpy(values)}


def frame_samples(rate: int) -> int:
    """Samples of one frame."""
    return round(FRAME_SECONDS * rate)


def frame_count(samples: int, rate: int) -> int:
    """Frames that fit into so many samples."""
    return max(0, 1 + (samples - frame_samples(rate)) // round(HOP_SECONDS * rate))


def log_mel(wave: Wave, rate: int, bands: int) -> Wave:
    """Log-mel energies [frames, bands] as Kaldi defines them, without dither.

    Raises:
        InputError: kaldi-native-fbank is not installed.
    """
    try:
        import kaldi_native_fbank as knf
    except ImportError as error:
        raise InputError(
            "--model auto",
            expected="kaldi-native-fbank, to make features of sound",
            found="it is not installed",
            remedy="run: pip install 'edge-pslora[audio]'",
        ) from error
    options = knf.FbankOptions()
    options.frame_opts.samp_freq = rate
    options.frame_opts.frame_length_ms = 1000 * FRAME_SECONDS
    options.frame_opts.frame_shift_ms = 1000 * HOP_SECONDS
    options.frame_opts.window_type = "hanning"
    options.frame_opts.dither = 0.0  # it would be random
    options.mel_opts.num_bins = bands
    options.mel_opts.low_freq = LOWEST_HZ
    computer: Any = knf.OnlineFbank(options)
    computer.accept_waveform(rate, wave)
    computer.input_finished()
    frames = [computer.get_frame(i) for i in range(computer.num_frames_ready)]
    return np.stack(frames) if frames else np.zeros((0, bands), np.float32)
