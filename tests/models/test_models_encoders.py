"""Encoders: what goes in comes out, whatever the batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_pslora.data.types import Samples
from edge_pslora.errors import DataError, InputError
from edge_pslora.models.encode_array import ArrayEncoder
from edge_pslora.models.encode_image import ImageEncoder, ImageSettings, decode, three
from edge_pslora.models.encode_text import TextEncoder, Tokens
from edge_pslora.models.hash_tokens import HashTokenizer

ragged = st.lists(st.lists(st.integers(1, 99), max_size=9), min_size=1, max_size=8)


def as_samples(count: int) -> Samples:
    return Samples(
        "text", "regression", [str(i) for i in range(count)], np.zeros(count, np.float32)
    )


def table(values: object, names: tuple[str, ...] = ()) -> Samples:
    rows = np.asarray(values, np.float32)
    return Samples("table", "regression", rows, np.zeros(len(rows), np.float32), names)


@given(ragged, st.booleans(), st.data())
@settings(deadline=None)
def test_text_batches_hold_the_ids_and_only_padding_beside_them(
    rows: list[list[int]], with_types: bool, data: st.DataObject
) -> None:
    types = [[i % 2 for i in row] for row in rows]
    encoder = TextEncoder(
        lambda texts: Tokens([rows[int(t)] for t in texts], [types[int(t)] for t in texts]),
        pad_id=7,
        with_types=with_types,
    )
    encoded = encoder.encode(as_samples(len(rows)))
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=6))
    indices = np.array(chosen, np.int64)
    batch = encoded.batch(indices)

    assert set(batch) == set(encoder.input_names)
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())
    assert batch["input_ids"].shape[1] == max(1, *(len(rows[i]) for i in chosen))
    for row, index in enumerate(chosen):
        expected = rows[index] or [7]  # an empty text still has one position
        kept = batch["attention_mask"][row].bool()
        assert kept[: len(expected)].all()
        assert batch["input_ids"][row][kept].tolist() == expected
        assert (batch["input_ids"][row][~kept] == 7).all()

    again = encoder.from_arrays(encoded.to_arrays(indices)).batch(np.arange(len(indices)))
    assert all(torch.equal(again[name], batch[name]) for name in batch)


@given(st.text(max_size=200), st.integers(1, 50))
def test_hashed_ids_are_in_range_bounded_and_a_prefix(text: str, limit: int) -> None:
    some, many = HashTokenizer(1000, limit), HashTokenizer(1000, 10_000)
    assert some.ids(text) == many.ids(text)[:limit]
    assert all(1 <= i < 1000 for i in many.ids(text))


def test_hashed_ids_do_not_depend_on_the_process() -> None:
    # CRC-32 of "wab", "b ab", "c<ab", "cab>", as the published polynomial gives them
    import zlib

    expected = [1 + zlib.crc32(g) % 9 for g in (b"wab", b"b ab", b"c<ab", b"cab>")]
    assert HashTokenizer(10, 100).ids("AB") == expected


def test_columns_in_another_order_are_put_right() -> None:
    encoder = ArrayEncoder((2,), ("age", "height"))
    encoded = encoder.encode(table([[180, 30], [170, 20]], ("height", "age")))
    np.testing.assert_array_equal(encoded.values, [[30, 180], [20, 170]])


@pytest.mark.parametrize("names", [("age", "weight"), ("age", "height", "more")])
def test_other_columns_are_refused_by_name(names: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match=r"height|more"):
        ArrayEncoder((2,), ("age", "height")).encode(table(np.zeros((3, len(names))), names))


def test_another_shape_or_kind_is_refused() -> None:
    with pytest.raises(DataError, match=r"shape \[2\].*\[3\]"):
        ArrayEncoder((2,)).encode(table(np.zeros((1, 3))))
    for encoder in (
        ArrayEncoder((2,)),
        ImageEncoder(ImageSettings(8, 8)),
    ):
        with pytest.raises(DataError, match="text data"):
            encoder.encode(as_samples(1))
    with pytest.raises(DataError, match="table data"):
        TextEncoder(lambda t: Tokens([[1] for _ in t]), 0).encode(table([[1.0]]))


def test_arrays_round_trip() -> None:
    encoder = ArrayEncoder((2,))
    encoded = encoder.encode(table([[1, np.nan], [3, 4], [5, 6]]))
    indices = np.array([2, 0], np.int64)
    again = encoder.from_arrays(encoded.to_arrays(indices))
    np.testing.assert_array_equal(again.values, encoded.values[indices])


def test_images_of_all_modes_become_scaled_squares(images: Samples) -> None:
    encoder = ImageEncoder(ImageSettings(16, 16, mean=three(0.5), std=three((0.5, 0.25, 0.5))))
    encoded = encoder.encode(images)
    batch = encoded.batch(np.array([3, 1], np.int64))["pixel_values"]
    assert batch.shape == (2, 3, 16, 16)
    assert batch.dtype == torch.float32
    assert float(batch[:, 1].abs().max()) <= 2.0
    expected = (torch.from_numpy(encoded.pixels[[3, 1], 0]).float() / 255 - 0.5) / 0.5
    torch.testing.assert_close(batch[:, 0], expected)
    again = encoder.from_arrays(encoded.to_arrays(np.array([3, 1], np.int64)))
    np.testing.assert_array_equal(again.pixels, encoded.pixels[[3, 1]])


def test_centre_crop_keeps_the_middle(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = 255
    image.fromarray(pixels).save(tmp_path / "x.png")
    middle = decode(tmp_path / "x.png", ImageSettings(10, 10, keep_aspect=True))
    np.testing.assert_array_equal(middle, np.full((10, 10, 3), 255))


def test_sixteen_bit_pictures_keep_their_contrast(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    ramp = np.linspace(0, 65_535, 64).astype(np.uint16).reshape(8, 8)
    image.fromarray(ramp).save(tmp_path / "x.png")
    decoded = decode(tmp_path / "x.png", ImageSettings(8, 8))
    np.testing.assert_array_equal(decoded[..., 0], ramp >> 8)


def test_a_file_that_does_not_decode_is_named(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(DataError, match=r"bad\.png"):
        decode(tmp_path / "bad.png", ImageSettings(8, 8))


def test_without_pillow_the_remedy_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(InputError, match=r"edge-pslora\[images\]"):
        decode(tmp_path / "x.png", ImageSettings(8, 8))


def test_token_ids_and_columns_are_the_same_when_they_are_spooled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = Samples(
        "text", "classification", ["some words", "", "more"] * 50, np.array(["a"] * 150)
    )
    encoder = TextEncoder(HashTokenizer(100, 20), pad_id=0)
    table = np.arange(3000, dtype=np.float32).reshape(1000, 3)
    columns = Samples("table", "regression", table, table[:, 0], ("c", "a", "b"))
    reorder = ArrayEncoder((3,), ("a", "b", "c"))
    small = encoder.encode(texts)
    monkeypatch.setattr("edge_pslora.data.spool.SPOOL_BYTES", 100)
    monkeypatch.setattr("edge_pslora.models.encode_array.SPOOL_BYTES", 100)
    large = encoder.encode(texts)
    np.testing.assert_array_equal(large.ids, small.ids)
    np.testing.assert_array_equal(large.offsets, small.offsets)
    np.testing.assert_array_equal(reorder.encode(columns).values, table[:, [1, 2, 0]])
    batch = large.batch(np.array([1, 0], np.int64))["input_ids"]
    torch.testing.assert_close(batch, small.batch(np.array([1, 0], np.int64))["input_ids"])


def test_channels_are_put_into_the_first_sessions_order() -> None:
    values = np.arange(24, dtype=np.float32).reshape(2, 4, 3)
    samples = Samples("array", "classification", values, np.array(["a", "b"]), ("c", "a", "b"))
    encoded = ArrayEncoder((4, 3), ("a", "b", "c")).encode(samples)
    np.testing.assert_array_equal(encoded.values, values[..., [1, 2, 0]])
