"""Recordings in class folders, and what is in one: decoded by libsndfile, in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from edge_pslora.data.class_folders import FileKind
from edge_pslora.data.options import ReadOptions
from edge_pslora.data.silence import silent_stderr
from edge_pslora.data.source import open_input, shown
from edge_pslora.errors import DataError, InputError

AUDIO_SUFFIXES = frozenset((".wav", ".flac", ".ogg", ".opus"))
# What such files may be inside: not the dozens of studio formats that libsndfile also knows.
_FORMATS = frozenset(("WAV", "WAVEX", "RF64", "FLAC", "OGG"))
_RATES = (1_000, 768_000)  # samples per second
_BLOCK_VALUES = 1 << 18  # frames x channels that are decoded at a time
_MAX_CHUNKS = 1_000  # of a WAV file before its sound
_UNKNOWN_SIZE = 0xFFFF_FFFF  # what a program writes that streams a WAV file into a pipe
# What soundfile raises: its LibsndfileError is a RuntimeError.
_DECODE_ERRORS = (OSError, RuntimeError, TypeError, ValueError, OverflowError, MemoryError)


# How the files of the formats above begin.
_SIGNATURES = (b"RIFF", b"RIFX", b"RF64", b"fLaC", b"OggS")


@dataclass(frozen=True)
class Clip:
    """One recording. samples: float32 [T] in about [-1, 1], the mean of its channels."""

    samples: npt.NDArray[np.float32]
    rate: int  # samples per second


class _UnusableError(Exception):
    """Why a recording cannot be used, in a few words."""


def clip_problem(path: Path, options: ReadOptions) -> str | None:
    """Why the recording at `path` cannot be used, or None. It is decoded once in full.

    Without options.decode only its first bytes and the sizes that its header claims are looked at.
    """
    try:
        with open_input(path) as stream, silent_stderr():
            if os.fstat(stream.fileno()).st_size > options.max_bytes:
                return "a file too large"
            _check_wav_sizes(stream)
            if not options.decode:
                stream.seek(0)
                return None if stream.read(4) in _SIGNATURES else "not a recording"
            for _ in _blocks(stream, options.audio_seconds_max, whole=True):
                pass
    except DataError as error:
        return error.found
    except _UnusableError as problem:
        return str(problem)
    return None


def read_clip(path: Path, seconds: float) -> Clip:
    """The first `seconds` of a recording, which `clip_problem` found none with.

    Raises:
        DataError: it no longer decodes. InputError: soundfile is not installed.
    """
    require_soundfile(path)
    rate, parts = 0, []
    try:
        with open_input(path) as stream, silent_stderr():
            for block, rate in _blocks(stream, seconds, whole=False):  # noqa: B007
                parts.append(block.mean(axis=1, dtype=np.float32))
    except _UnusableError as problem:
        raise _gone_bad(path, str(problem)) from problem
    return Clip(np.concatenate(parts), rate)


def length_of(path: Path) -> tuple[float, int]:
    """(seconds, samples per second) of a recording, by its header.

    Raises:
        DataError: it no longer decodes. InputError: soundfile is not installed.
    """
    require_soundfile(path)
    import soundfile

    try:
        with open_input(path) as stream, soundfile.SoundFile(stream.fileno(), closefd=False) as s:
            return s.frames / s.samplerate, int(s.samplerate)
    except _DECODE_ERRORS as error:
        raise _gone_bad(path, _reason(error)) from error


def _gone_bad(path: Path, found: str) -> DataError:
    return DataError(
        shown(path),
        expected="a recording that decodes",
        found=found,
        remedy="remove or replace the file",
    )


def _reason(error: Exception) -> str:
    said = shown(str(getattr(error, "error_string", error)), 60) or type(error).__name__
    return f"it does not decode ({said.rstrip('.')})"


def _blocks(
    stream: BinaryIO, seconds: float, *, whole: bool
) -> Iterator[tuple[npt.NDArray[np.float32], int]]:
    """(float32 [T, channels], rate), block by block, of a file that is open for reading.

    whole: a recording longer than `seconds` is unusable; else what is beyond is left out.
    """
    import soundfile

    try:
        # by its number: libsndfile then trusts the first bytes and not the name. It starts where
        # the descriptor stands, which a seek of the buffered stream need not move.
        os.lseek(stream.fileno(), 0, os.SEEK_SET)
        with soundfile.SoundFile(stream.fileno(), closefd=False) as sound:
            _check_header(sound)
            rate, channels = int(sound.samplerate), int(sound.channels)
            limit, read = int(seconds * rate), 0
            if whole and sound.frames > limit:
                raise _UnusableError(f"longer than {seconds:g} seconds")
            size = max(1, _BLOCK_VALUES // channels)
            while whole or read < limit:
                wanted = size if whole else min(size, limit - read)
                block = sound.read(wanted, dtype="float32", always_2d=True)
                read += len(block)
                if len(block) == 0:
                    break
                if whole and read > limit:
                    raise _UnusableError(f"longer than {seconds:g} seconds")
                if not np.isfinite(block).all():
                    raise _UnusableError("values that are not finite")
                yield block, rate
            if read == 0 or (whole and read < sound.frames):
                raise _UnusableError(f"cut off: {read} of {sound.frames} samples are there")
    except _DECODE_ERRORS as error:
        raise _UnusableError(_reason(error)) from error


def _check_header(sound: Any) -> None:
    if sound.format not in _FORMATS:
        raise _UnusableError(f"{shown(sound.format, 20)} inside, not WAV, FLAC or OGG")
    if sound.frames <= 0:
        raise _UnusableError("no sound in it")
    if not _RATES[0] <= sound.samplerate <= _RATES[1]:
        raise _UnusableError(f"{sound.samplerate} samples per second")


def _check_wav_sizes(stream: BinaryIO) -> None:
    """A WAV file whose header promises more sound than there is was cut off; libsndfile would
    take what is left of it without a word."""
    size = os.fstat(stream.fileno()).st_size
    head = stream.read(12)
    if head[:4] not in (b"RIFF", b"RIFX") or head[8:] != b"WAVE":
        return
    order = "<" if head[:4] == b"RIFF" else ">"
    position = 12
    for _ in range(_MAX_CHUNKS):
        stream.seek(position)
        chunk = stream.read(8)
        if len(chunk) < 8:
            return
        length = int(np.frombuffer(chunk[4:], f"{order}u4")[0])
        position += 8
        if chunk[:4] == b"data":
            if length != _UNKNOWN_SIZE and position + length > size:
                there = size - position
                raise _UnusableError(f"cut off: {there} of {length} bytes of sound are there")
            return
        position += length + length % 2
    raise _UnusableError("a header that does not end")


def require_soundfile(where: Path) -> None:
    """Raises InputError: soundfile, which decodes recordings, is not installed."""
    try:
        import soundfile  # noqa: F401
    except ImportError as error:
        raise InputError(
            shown(where),
            expected="soundfile, which reads recordings",
            found="it is not installed",
            remedy="run: pip install 'edge-pslora[audio]'",
        ) from error
    except OSError as error:  # the package without its library
        raise InputError(
            shown(where),
            expected="libsndfile, which soundfile needs",
            found=shown(str(error), 80),
            remedy="install libsndfile with the system's own packages",
        ) from error


RECORDINGS = FileKind(
    modality="audio",
    suffixes=AUDIO_SUFFIXES,
    one="a recording",
    many="recordings",
    example="sound.wav",
    require=require_soundfile,
    problem=clip_problem,
)
