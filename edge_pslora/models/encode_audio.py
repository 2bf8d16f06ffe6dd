"""Recordings as a model's input: one channel at the model's rate, 16 bits a sample in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from edge_pslora.data.audio import length_of, read_clip
from edge_pslora.data.types import Samples
from edge_pslora.errors import DataError, InputError

VALUES, MASK = "input_values", "attention_mask"
WAVES, LENGTHS = "waves", "lengths"  # names in the anchor file
FULL_SCALE = 32_768  # of a 16-bit sample
LONGEST_SECONDS = 15.0  # of a clip, where neither the user nor the model says
USUAL_SHARE = 0.95  # of the recordings are no longer than the usual length

Wave = npt.NDArray[np.float32]  # [T], in [-1, 1]


class AudioForm(Protocol):
    """What a model is given of a few waves: their samples, or features made of them."""

    @property
    def input_names(self) -> tuple[str, ...]: ...

    @property
    def ragged(self) -> bool:
        """Whether the inputs are as long as the longest wave; else all have one shape."""
        ...

    @property
    def kept(self) -> bool:
        """Whether the inputs are small enough to be made once and kept in memory."""
        ...

    def __call__(self, waves: Sequence[Wave]) -> dict[str, torch.Tensor]: ...


@dataclass(frozen=True)
class EncodedAudio:
    """waves: int16 [sum of lengths]; offsets: int64 [N + 1] into it; kept: the form's inputs for
    all N, where it wants that."""

    waves: npt.NDArray[np.int16]
    offsets: npt.NDArray[np.int64]
    form: AudioForm
    kept: dict[str, torch.Tensor] | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def batch(self, indices: npt.NDArray[np.int64]) -> dict[str, torch.Tensor]:
        if self.kept is not None:
            rows = torch.from_numpy(indices)
            return {name: values[rows] for name, values in self.kept.items()}
        scale = np.float32(1 / FULL_SCALE)  # a power of two: exact
        return self.form(
            [np.multiply(self._wave(int(i)), scale, dtype=np.float32) for i in indices]
        )

    def lengths(self) -> npt.NDArray[np.int64]:
        """In samples for ragged inputs."""
        return np.diff(self.offsets) if self.form.ragged else np.ones(len(self), np.int64)

    def to_arrays(self, indices: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]]:
        """waves int16 [K, T], padded with silence; lengths int32 [K]."""
        lengths = np.diff(self.offsets)[indices]
        padded = np.zeros((len(indices), int(lengths.max(initial=1))), np.int16)
        for row, index in enumerate(indices):
            padded[row, : lengths[row]] = self._wave(int(index))
        return {WAVES: padded, LENGTHS: lengths.astype(np.int32)}

    def _wave(self, index: int) -> npt.NDArray[np.int16]:
        return self.waves[self.offsets[index] : self.offsets[index + 1]]


@dataclass(frozen=True)
class AudioEncoder:
    """rate: samples per second that the model wants. longest, shortest: of a clip, in samples; what
    is beyond the longest is left out, what is shorter than the shortest ends in silence."""

    form: AudioForm
    rate: int
    longest: int
    shortest: int = 1

    @property
    def input_names(self) -> tuple[str, ...]:
        return self.form.input_names

    def encode(self, samples: Samples) -> EncodedAudio:
        """Raises DataError: other data than recordings, or a file that no longer decodes."""
        if samples.modality != "audio":
            raise DataError(
                "DATA",
                expected="recordings, as in the first session",
                found=f"{samples.modality} data",
                remedy="use a new --workspace for another kind of data",
            )
        return self._encoded([self._clip(Path(path)) for path in samples.inputs])

    def from_arrays(self, arrays: dict[str, npt.NDArray[Any]]) -> EncodedAudio:
        pairs = zip(arrays[WAVES], arrays[LENGTHS], strict=True)
        return self._encoded([np.asarray(row[:n], np.int16) for row, n in pairs])

    def _clip(self, path: Path) -> npt.NDArray[np.int16]:
        """One recording, int16 [T]."""
        clip = read_clip(path, self.longest / self.rate)
        wave = resample(clip.samples, clip.rate, self.rate, path)[: self.longest]
        # louder than full scale are only files of floats: their own peak is then full scale
        peak = float(np.abs(wave).max(initial=0.0))
        scaled = np.rint(wave * (FULL_SCALE / max(peak, 1.0)))
        values = np.clip(scaled, -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)
        return np.pad(values, (0, max(0, self.shortest - len(values))))

    def _encoded(self, clips: Sequence[npt.NDArray[np.int16]]) -> EncodedAudio:
        offsets = np.zeros(len(clips) + 1, np.int64)
        np.cumsum([len(clip) for clip in clips], out=offsets[1:])
        waves = np.concatenate([np.zeros(0, np.int16), *clips])
        encoded = EncodedAudio(waves, offsets, self.form)
        if not self.form.kept or not clips:
            return encoded
        kept = encoded.batch(np.arange(len(clips), dtype=np.int64))
        return EncodedAudio(waves, offsets, self.form, kept)


def resample(wave: Wave, rate: int, wanted: int, path: Path) -> Wave:
    """The wave at another rate, band-limited (libsoxr). Raises InputError: soxr is not installed."""
    if rate == wanted:
        return wave
    try:
        import soxr
    except ImportError as error:
        raise _not_installed(path, "soxr, to change the sample rate") from error
    return np.asarray(soxr.resample(wave, rate, wanted), np.float32)


def usual_length(samples: Samples) -> tuple[float, int]:
    """(seconds that nineteen in twenty recordings do not exceed, their most frequent rate)."""
    lengths = [length_of(Path(path)) for path in samples.inputs]
    seconds = float(np.quantile([length for length, _ in lengths], USUAL_SHARE))
    rates, counts = np.unique([rate for _, rate in lengths], return_counts=True)
    # up to the next tenth: a length that can be said in a sentence
    return math.ceil(round(10 * seconds, 6)) / 10, int(rates[counts.argmax()])


def _not_installed(path: Path, what: str) -> InputError:
    return InputError(
        str(path),
        expected=what,
        found="it is not installed",
        remedy="run: pip install 'edge-pslora[audio]'",
    )
