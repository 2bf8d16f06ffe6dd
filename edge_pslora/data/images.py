"""A folder with one sub-folder of images per class."""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from edge_pslora.data.labels import label_problem
from edge_pslora.data.options import ReadOptions
from edge_pslora.data.source import cannot_open, open_input, shown
from edge_pslora.data.tally import Part, Tally
from edge_pslora.data.types import Samples
from edge_pslora.errors import DataError, InputError

IMAGE_SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
)
# Not EPS or PDF, for which Pillow starts other programs.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
# How files of these formats begin (their specifications; "P1" to "P6" are the PPM family).
_SIGNATURES = (
    *(b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"GIF87a", b"GIF89a", b"RIFF"),
    *(b"II*\0", b"MM\0*", *(b"P%d" % number for number in range(1, 7))),
)
_MAX_DEPTH = 16
_LITTER = frozenset(("thumbs.db", "desktop.ini"))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """The visible entries of a folder, by name."""
    try:
        with os.scandir(folder) as found:
            return sorted(
                (e for e in found if not e.name.startswith((".", "__MACOSX"))),
                key=lambda entry: entry.name,
            )
    except (OSError, ValueError) as error:
        raise cannot_open(folder, error) from error


def class_folders(root: Path) -> list[Path]:
    """Sub-folders of `root`, links to folders included, by name."""
    # isdir, unlike DirEntry.is_dir, says no to a link that leads to itself.
    return [Path(entry.path) for entry in _entries(root) if os.path.isdir(entry.path)]  # noqa: PTH112


def _escapes(path: Path, root: Path) -> str | None:
    """Why the symbolic link `path` may not be followed, or None. `root` is resolved."""
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):
        return "a symbolic link to nothing"
    return None if target.is_relative_to(root) else "a symbolic link that leaves the folder"


def _files(folder: Path, root: Path, depth: int = 0) -> Iterator[tuple[Path, str | None]]:
    """Every file below `folder` in order, with the reason where it must not be opened."""
    if depth > _MAX_DEPTH:
        yield folder, "folders nested too deeply"
        return
    try:
        entries = _entries(folder)
    except DataError as error:
        yield folder, error.found
        return
    for entry in entries:
        path = Path(entry.path)
        if entry.is_symlink() and (problem := _escapes(path, root)):
            yield path, problem
        elif entry.is_symlink() and path.is_dir():
            # Following it could go round in circles.
            yield path, "a symbolic link to a folder"
        elif entry.is_dir(follow_symlinks=False):
            yield from _files(path, root, depth + 1)
        elif path.suffix.casefold() in IMAGE_SUFFIXES:
            yield path, None
        elif entry.name.casefold() not in _LITTER:
            yield path, f"not an image by its name ({shown(path.suffix, 20) or 'no suffix'})"


def _decode(stream: BinaryIO, pixels_max: int) -> str | None:
    """Decodes one image completely; a reason if that fails. Its size is checked before."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(stream, formats=_FORMATS) as image:
            width, height = image.size
            if width * height > pixels_max:
                return f"{width} x {height} pixels, more than {pixels_max}"
            image.convert("RGB")
    except UnidentifiedImageError:
        return "not an image"
    except Image.DecompressionBombError:
        return f"more than {pixels_max} pixels"
    # What Pillow's decoders raise on damaged files, over all formats above.
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RuntimeError,
        MemoryError,
        struct.error,
        zlib.error,
    ) as error:
        return f"it does not decode ({shown(str(error), 60) or type(error).__name__})"
    return None


def image_problem(path: Path, options: ReadOptions) -> str | None:
    """Why the image at `path` cannot be used, or None. It is decoded once in full.

    Without options.decode only its first bytes are looked at.
    """
    try:
        with open_input(path) as stream, warnings.catch_warnings():
            # Pillow warns of odd metadata and of sizes that are checked here anyway.
            warnings.simplefilter("ignore")
            if os.fstat(stream.fileno()).st_size > options.max_bytes:
                return "a file too large"
            if not options.decode:
                return None if stream.read(16).startswith(_SIGNATURES) else "not an image"
            return _decode(stream, options.image_pixels_max)
    except DataError as error:
        return error.found


def _require_pillow(root: Path) -> None:
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise InputError(
            shown(root),
            expected="Pillow, which reads images",
            found="it is not installed",
            remedy="pip install 'edge-pslora[images]'",
        ) from error


def read_images(root: Path, options: ReadOptions) -> Part:
    """Reads root/<class>/**/<image>; the name of the class folder is the label.

    Raises:
        DataError: no class folder with an image, or too many files that are no images.
        InputError: Pillow is not installed.
    """
    _require_pillow(root)
    source, tally = shown(root), Tally(shown(root), options)
    if options.task_type == "regression":
        raise DataError(
            source,
            expected="numbers as labels for regression",
            found="folders of images",
            remedy="leave --task-type out",
        )
    real_root = root.resolve()
    paths: list[Path] = []
    labels: list[str] = []
    position = seen = 0  # files so far, and those that are images by their name
    for entry in _entries(root):
        path = Path(entry.path)
        if path.suffix.casefold() in IMAGE_SUFFIXES and not entry.is_dir(follow_symlinks=False):
            tally.reject(position, shown(entry.name), "an image outside the class folders")
    for folder in class_folders(root):
        problem = label_problem(folder.name)
        if problem is None and folder.is_symlink():
            problem = _escapes(folder, real_root) or "a symbolic link to a folder"
        if problem is not None:
            tally.reject(position, shown(folder.name), problem)
            continue
        for path, reason in _files(folder, real_root):
            position += 1
            seen += path.suffix.casefold() in IMAGE_SUFFIXES
            reason = reason or image_problem(path, options)
            if reason is None:
                paths.append(path)
                labels.append(folder.name.strip())
            else:
                tally.reject(position, shown(path.relative_to(root)), reason)
    if not seen:
        raise DataError(
            source,
            expected="one folder of images per class",
            found="no image",
            remedy="lay it out as FOLDER/class/picture.png",
        )
    rejected = tally.close(len(paths))
    samples = Samples("image", "classification", paths, np.array(labels, dtype=np.str_))
    return Part(samples, rejected)
