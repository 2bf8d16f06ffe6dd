"""Folders of recordings, good and hostile."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from edge_pslora.data.audio import read_clip
from edge_pslora.data.read import ReadOptions, read_dataset
from edge_pslora.errors import DataError
from tests.audio_kit import RATE, tone, write_tones, write_wav

soundfile = pytest.importorskip("soundfile")


def riff(
    path: Path,
    data: bytes = b"\0\0" * 800,
    *,
    tag: int = 1,
    channels: int = 1,
    rate: int = RATE,
    bits: int = 16,
    promised: int | None = None,
) -> Path:
    """A WAV file, byte by byte; `promised`: the length that its header gives for the data."""
    frame = channels * bits // 8
    fmt = struct.pack(
        "<HHIIHH", tag, channels, rate, rate * frame % (1 << 32), frame % (1 << 16), bits
    )
    length = len(data) if promised is None else promised
    body = b"WAVEfmt " + struct.pack("<I", len(fmt)) + fmt + b"data" + struct.pack("<I", length)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body) + len(data)) + body + data)
    return path


def test_class_folders(tmp_path):
    write_tones(tmp_path, ("low", "high"), 4)
    data = read_dataset(tmp_path)
    assert (data.train.modality, data.train.task_type) == ("audio", "classification")
    assert data.train.targets.tolist() == ["high"] * 4 + ["low"] * 4
    assert [Path(p).name for p in data.train.inputs] == [f"{i:03}.wav" for i in range(4)] * 2
    assert data.valid is None
    assert data.test is None
    assert data.rejected == ()


def test_parts(tmp_path):
    for part, n in (("train", 3), ("valid", 2), ("test", 1)):
        write_tones(tmp_path / part, ("low", "high"), n)
    data = read_dataset(tmp_path)
    assert data.valid is not None
    assert data.test is not None
    assert [len(s) for s in (data.train, data.valid, data.test)] == [6, 4, 2]


def test_formats(tmp_path):
    sound = tone("low", 0.2, 0)
    forms = [("wav", kind) for kind in ("PCM_16", "PCM_24", "FLOAT", "ULAW")]
    forms += [("flac", "PCM_16"), ("ogg", "VORBIS")]
    for index, (suffix, subtype) in enumerate(forms):
        (tmp_path / "a").mkdir(exist_ok=True)
        values = sound / 32_768 if subtype == "FLOAT" else sound
        soundfile.write(tmp_path / "a" / f"{index}.{suffix}", values, RATE, subtype=subtype)
    data = read_dataset(tmp_path)
    assert len(data.train) == 6
    for path in data.train.inputs:
        clip = read_clip(Path(path), 60)
        assert clip.rate == RATE
        assert clip.samples.dtype == np.float32
        np.testing.assert_allclose(clip.samples, sound / 32_768, atol=0.05)
    exact = read_clip(Path(data.train.inputs[0]), 60).samples
    np.testing.assert_array_equal(exact * 32_768, sound)


def test_channels_are_averaged_and_the_end_is_left_out(tmp_path):
    left, right = tone("low", 0.5, 0), tone("high", 0.5, 1)
    path = write_wav(tmp_path / "x.wav", np.stack([left, right], 1))
    clip = read_clip(path, 0.25)
    both = (left.astype(np.float64) + right)[: RATE // 4] / 2 / 32_768
    np.testing.assert_allclose(clip.samples, both, atol=1e-7)


def test_the_bytes_of_the_files_are_the_fingerprint(tmp_path):
    write_tones(tmp_path / "a", ("low", "high"), 2)
    write_tones(tmp_path / "b", ("low", "high"), 2)
    (tmp_path / "b" / "low" / "001.wav").rename(tmp_path / "b" / "low" / "009.wav")
    assert read_dataset(tmp_path / "a").digest == read_dataset(tmp_path / "b").digest
    write_wav(tmp_path / "b" / "low" / "009.wav", tone("low", 0.3, 77))
    assert read_dataset(tmp_path / "a").digest != read_dataset(tmp_path / "b").digest


def hostile(root: Path) -> dict[str, str]:
    """File name -> the reason that it must be rejected for; the files are written to root."""
    good = struct.pack("<800h", *([1000, -1000] * 400))
    riff(root / "promises.wav", good, promised=len(good) + 2)
    riff(root / "promises_much.wav", good, promised=0xFFFF_FFF0)
    riff(root / "nothing.wav", b"")
    riff(root / "no_channels.wav", good, channels=0)
    riff(root / "many_channels.wav", good, channels=60_000)
    riff(root / "no_rate.wav", good, rate=0)
    riff(root / "slow.wav", good, rate=10)
    riff(root / "fast.wav", good, rate=4_000_000_000)
    riff(root / "odd_codec.wav", good, tag=0x4242)
    nan = np.array([0.5, np.nan, 0.1], "<f4").tobytes()
    riff(root / "nan.wav", nan, tag=3, bits=32)
    riff(root / "infinite.wav", np.full(9, np.inf, "<f4").tobytes(), tag=3, bits=32)
    riff(root / "hours.wav", b"\0" * 2 * 1_000 * 601, rate=1_000)
    (root / "empty.wav").write_bytes(b"")
    (root / "head.wav").write_bytes(b"RIFF\x10\0\0\0WAVE")
    (root / "picture.wav").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 100)
    (root / "text.flac").write_bytes(b"this is no sound at all\n" * 9)
    (root / "noise.ogg").write_bytes(b"OggS" + bytes(range(256)) * 4)
    soundfile.write(root / "cut.flac", np.tile(tone("low", 1, 0), 4), RATE)
    whole = (root / "cut.flac").read_bytes()
    (root / "cut.flac").write_bytes(whole[: len(whole) // 2])
    soundfile.write(root / "studio.aiff", tone("low", 0.1, 0), RATE)
    (root / "studio.aiff").rename(root / "studio.wav")
    (root / "folder.wav").mkdir()
    (root / "notes.txt").write_text("x")
    return {
        "promises.wav": "cut off",
        "promises_much.wav": "cut off",
        "nothing.wav": "no sound",
        "no_channels.wav": "does not decode",
        "many_channels.wav": "does not decode",
        "no_rate.wav": "does not decode",
        "slow.wav": "10 samples per second",
        "fast.wav": "does not decode",
        "odd_codec.wav": "does not decode",
        "nan.wav": "not finite",
        "infinite.wav": "not finite",
        "hours.wav": "longer than 600 seconds",
        "empty.wav": "an empty file",
        "head.wav": "does not decode",
        "picture.wav": "does not decode",
        "text.flac": "does not decode",
        "noise.ogg": "does not decode",
        "cut.flac": "does not decode",
        "studio.wav": "AIFF",
        "notes.txt": "not a recording by its name (.txt)",
    }


def test_hostile_files_are_set_aside(tmp_path):
    (tmp_path / "bad").mkdir()
    expected = hostile(tmp_path / "bad")
    write_tones(tmp_path, ("low", "high"), 2)
    data = read_dataset(tmp_path, ReadOptions(max_bad_fraction=0.9))
    assert len(data.train) == 4
    found = {Path(row.where).name: row.reason for row in data.rejected}
    assert found.keys() == expected.keys()
    assert {name: reason for name, reason in found.items() if expected[name] not in reason} == {}
    assert all(found.values())
    with pytest.raises(DataError, match="at most 10% unreadable rows; found 20 of 24"):
        read_dataset(tmp_path)


def test_a_streamed_file_of_unknown_length_is_read(tmp_path):
    sound = tone("low", 0.2, 0)
    path = riff(tmp_path / "a" / "pipe.wav", sound.astype("<i2").tobytes(), promised=0xFFFF_FFFF)
    assert len(read_dataset(tmp_path).train) == 1
    np.testing.assert_array_equal(read_clip(path, 9).samples * 32_768, sound)


def test_a_few_bad_files_do_not_stop_the_run(tmp_path):
    write_tones(tmp_path, ("low", "high"), 10)
    riff(tmp_path / "low" / "nothing.wav", b"")
    data = read_dataset(tmp_path)
    assert len(data.train) == 20
    assert [(row.where, row.reason) for row in data.rejected] == [
        ("low/nothing.wav", "no sound in it")
    ]


def test_memory_does_not_grow_with_a_recording(tmp_path):
    (tmp_path / "a").mkdir()
    soundfile.write(tmp_path / "a" / "x.flac", np.zeros(RATE * 590, np.int16), RATE)
    tracemalloc.start()
    try:
        assert len(read_dataset(tmp_path).train) == 1
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20  # as float32 it is 19 MB


def test_images_and_recordings_do_not_mix(tmp_path):
    image = pytest.importorskip("PIL.Image")
    write_tones(tmp_path, ("low",), 2)
    (tmp_path / "cat").mkdir()
    image.new("RGB", (8, 8)).save(tmp_path / "cat" / "x.png")
    with pytest.raises(DataError, match=r"found both, such as cat/x\.png and low/000\.wav"):
        read_dataset(tmp_path)


def test_parts_of_different_kinds(tmp_path):
    image = pytest.importorskip("PIL.Image")
    write_tones(tmp_path / "train", ("low",), 2)
    (tmp_path / "valid" / "low").mkdir(parents=True)
    image.new("RGB", (8, 8)).save(tmp_path / "valid" / "low" / "x.png")
    with pytest.raises(DataError, match="expected the modality of the training part, audio"):
        read_dataset(tmp_path)


def test_folders_of_recordings_are_not_for_regression(tmp_path):
    write_tones(tmp_path, ("low",), 2)
    with pytest.raises(DataError, match="found folders of recordings"):
        read_dataset(tmp_path, ReadOptions(task_type="regression"))


def test_a_folder_of_other_files(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "song.mp3").write_bytes(b"ID3")
    with pytest.raises(DataError, match=r"found no image and no recording.*class/sound\.wav"):
        read_dataset(tmp_path)


def test_a_recording_that_vanished(tmp_path):
    write_tones(tmp_path, ("low",), 1)
    path = tmp_path / "low" / "000.wav"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(DataError, match="expected a recording that decodes"):
        read_clip(path, 1)
