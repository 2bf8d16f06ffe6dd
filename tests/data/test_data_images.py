"""Folders of class folders: what decodes is used, everything else is set aside with its reason."""

from __future__ import annotations

import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edge_pslora.data.images import image_problem, open_image
from edge_pslora.data.read import ReadOptions, read_dataset
from edge_pslora.errors import DataError, InputError


def picture(path: Path, size: tuple[int, int] = (5, 4), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def classes(root: Path, each: int = 12) -> Path:
    for name in ("cat", "dog"):
        for i in range(each):
            picture(root / name / f"{i:02d}.png")
    return root


def huge_png(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims a huge picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + kind + data + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_each_folder_is_a_class_and_order_is_by_name(tmp_path: Path) -> None:
    root = classes(tmp_path, each=2)
    picture(root / "cat" / "nested" / "03.jpg")
    (root / ".hidden").mkdir()
    (root / "cat" / ".DS_Store").write_bytes(b"x")
    (root / "cat" / "Thumbs.db").write_bytes(b"x")
    data = read_dataset(root)
    names = [str(Path(path).relative_to(root)) for path in data.train.inputs]
    assert names == ["cat/00.png", "cat/01.png", "cat/nested/03.jpg", "dog/00.png", "dog/01.png"]
    assert data.train.targets.tolist() == ["cat"] * 3 + ["dog"] * 2
    assert (data.train.modality, data.rejected) == ("image", ())


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "I;16"])
def test_every_common_pixel_mode_is_fine(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.png"
    if mode == "I;16":
        Image.fromarray(np.ones((3, 3), dtype=np.uint16)).save(path)
    else:
        picture(path, mode=mode)
    assert image_problem(path, ReadOptions()) is None


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".gif", ".webp", ".tif", ".ppm"])
def test_every_format_is_read(tmp_path: Path, suffix: str) -> None:
    assert image_problem(picture(tmp_path / ("a" + suffix)), ReadOptions()) is None


def test_hostile_files_are_set_aside(tmp_path: Path) -> None:
    outside = picture(tmp_path / "outside.png")
    root = classes(tmp_path / "data", each=60)
    cat = root / "cat"
    (cat / "a-empty.png").write_bytes(b"")
    (cat / "b-text.jpg").write_text("not a picture")
    (cat / "c-huge.png").write_bytes(huge_png(60_000, 60_000))
    (cat / "d-large.png").write_bytes(huge_png(6_000, 5_000))
    os.mkfifo(cat / "e-pipe.png")
    (cat / "f-dangling.png").symlink_to(root / "nowhere.png")
    (cat / "g-escaping.png").symlink_to(outside)
    (cat / "h-inside.png").symlink_to(cat / "00.png")
    (cat / "i-loop.png").symlink_to(cat / "i-loop.png")
    (cat / "j-notes.txt").write_text("notes")
    (cat / "k-round").symlink_to(root, target_is_directory=True)
    deep = cat.joinpath("l", *"deep" * 5)
    picture(deep / "a.png")
    (root / "out").symlink_to(tmp_path, target_is_directory=True)
    (root / "stray.png").write_bytes(outside.read_bytes())
    data = read_dataset(root)
    assert {row.where: row.reason for row in data.rejected} == {
        "stray.png": "an image outside the class folders",
        "cat/a-empty.png": "an empty file",
        "cat/b-text.jpg": "not an image",
        "cat/c-huge.png": "more than 25000000 pixels",
        "cat/d-large.png": "6000 x 5000 pixels, more than 25000000",
        "cat/e-pipe.png": "a named pipe (FIFO)",
        "cat/f-dangling.png": "a symbolic link to nothing",
        "cat/g-escaping.png": "a symbolic link that leaves the folder",
        "cat/i-loop.png": "a symbolic link to nothing",
        "cat/j-notes.txt": "not an image by its name (.txt)",
        "cat/k-round": "a symbolic link to a folder",
        "/".join(("cat", "l", *("deep" * 5)[:16])): "folders nested too deeply",
        "out": "a symbolic link that leaves the folder",
    }
    assert len(data.train) == 121


def test_a_linked_root_is_the_users_own_choice(tmp_path: Path) -> None:
    classes(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    assert len(read_dataset(tmp_path / "link").train) == 24


def test_odd_names(tmp_path: Path) -> None:
    root = classes(tmp_path / "data", each=20)
    picture(root / "cat" / "line\nbreak \x1b[31m.png")
    bad = os.fsdecode(b"caf\xe9")
    picture(root / bad / "a.png")
    (root / "cat" / (bad + ".png")).write_bytes(b"broken")
    data = read_dataset(root)
    assert len(data.train) == 41
    for row in data.rejected:
        assert (row.where + row.reason).isprintable()
    assert [row.where for row in data.rejected] == ["caf\\udce9", "cat/caf\\udce9.png"]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".gif", ".webp", ".tif", ".ppm"])
def test_every_truncation_and_bit_flip_decodes_or_is_set_aside(tmp_path: Path, suffix: str) -> None:
    path = picture(tmp_path / ("a" + suffix))
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        problem = image_problem(path, ReadOptions())
        assert problem is None or problem.isprintable()
    # Every byte, one bit in it each: all eight would take minutes and find no more.
    for position in range(len(whole)):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << (position % 8)
        path.write_bytes(flipped)
        problem = image_problem(path, ReadOptions(image_pixels_max=10_000))
        assert problem is None or problem.isprintable()


def test_parts_of_images(tmp_path: Path) -> None:
    for name, each in (("train", 4), ("val", 2), ("test", 3)):
        classes(tmp_path / name, each)
    data = read_dataset(tmp_path)
    assert data.valid is not None
    assert data.test is not None
    assert (len(data.train), len(data.valid), len(data.test)) == (8, 4, 6)


def test_classes_may_be_called_train_and_test(tmp_path: Path) -> None:
    picture(tmp_path / "train" / "steam.png")
    picture(tmp_path / "test" / "tube.png")
    assert read_dataset(tmp_path).train.targets.tolist() == ["test", "train"]


def test_no_classes_no_images_too_many_bad(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found an empty folder"):
        read_dataset(tmp_path)
    picture(tmp_path / "a.png")
    with pytest.raises(
        DataError, match=r"one folder of images or recordings per class; found a\.png"
    ):
        read_dataset(tmp_path)
    (tmp_path / "cat").mkdir()
    with pytest.raises(DataError, match="found no image"):
        read_dataset(tmp_path)
    (tmp_path / "a.png").unlink()
    picture(tmp_path / "cat" / "a.png")
    (tmp_path / "cat" / "b.png").write_bytes(b"?")
    with pytest.raises(DataError, match=r"1 of 2 \(first: cat/b\.png: not an image"):
        read_dataset(tmp_path)
    (tmp_path / "cat" / "b.png").unlink()
    with pytest.raises(DataError, match="at least 2 classes; found 1: cat"):
        read_dataset(tmp_path, ReadOptions(min_classes=2))
    with pytest.raises(DataError, match="regression"):
        read_dataset(tmp_path, ReadOptions(task_type="regression"))


def test_without_pillow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classes(tmp_path, each=1)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(InputError, match=r"pip install 'edge-pslora\[images\]'"):
        read_dataset(tmp_path)


@pytest.mark.parametrize("compression", ["tiff_lzw", "raw"])
def test_a_tiff_is_in_memory_before_libtiff_sees_it(tmp_path: Path, compression: str) -> None:
    """It would map the file, and end the process by a signal where another one cuts it meanwhile."""
    path = tmp_path / "a.tif"
    with Image.open(picture(tmp_path / "a.png")) as source:
        source.save(path, compression=compression)
        pixels = np.asarray(source)
    with path.open("rb") as stream, open_image(stream) as image:
        path.write_bytes(b"")
        np.testing.assert_array_equal(np.asarray(image), pixels)
