"""Images in class folders: what Pillow must decode."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from edge_pslora.data.class_folders import FileKind
from edge_pslora.data.options import ReadOptions
from edge_pslora.data.silence import silent_stderr
from edge_pslora.data.source import open_input, shown
from edge_pslora.errors import DataError, InputError

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
)
# Not EPS or PDF, for which Pillow starts other programs.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
_TIFF = (b"II", b"MM")
# What Pillow's decoders raise on damaged files, over all formats above; beside DecompressionBombError.
DECODING_ERRORS = (
    *(OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, AttributeError),
    *(ArithmeticError, RuntimeError, MemoryError, struct.error, zlib.error),
)
_MAX_SCANS = 200  # of a JPEG; encoders write about ten, and each goes over the whole picture
_SCAN = b"\xff\xda"
_MAX_FILE = 64 << 20  # bytes beside four for each pixel that may be there
# How files of these formats begin (their specifications; "P1" to "P6" are the PPM family).
_SIGNATURES = (
    *(b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"GIF87a", b"GIF89a", b"RIFF"),
    *(b"II*\0", b"MM\0*", *(b"P%d" % number for number in range(1, 7))),
)


@contextmanager
def open_image(stream: BinaryIO) -> Iterator[Image]:
    """The image in `stream`, not yet decoded; what decoders say of it is not printed.

    Raises DECODING_ERRORS or Pillow's DecompressionBombError, also while it is decoded.
    """
    from PIL import Image

    with warnings.catch_warnings(), silent_stderr():
        # Pillow warns of odd metadata and of sizes that are checked elsewhere.
        warnings.simplefilter("ignore")
        begins = stream.read(2)
        stream.seek(0)
        # libtiff maps a file that it can; if another process cuts that file meanwhile, a signal ends us
        source = io.BytesIO(stream.read()) if begins in _TIFF else stream
        with Image.open(source, formats=_FORMATS) as image:
            yield image


def _decode(stream: BinaryIO, pixels_max: int) -> str | None:
    """Decodes one image completely; a reason if that fails. Its size is checked before."""
    from PIL import Image, UnidentifiedImageError

    try:
        with open_image(stream) as image:
            width, height = image.size
            if width * height > pixels_max:
                return f"{width} x {height} pixels, more than {pixels_max}"
            image.convert("RGB")
    except UnidentifiedImageError:
        return "not an image"
    except Image.DecompressionBombError:
        return f"more than {pixels_max} pixels"
    except DECODING_ERRORS as error:
        return f"it does not decode ({shown(str(error), 60) or type(error).__name__})"
    return None


def _scans(stream: BinaryIO) -> int:
    """How many scans a JPEG may have at most: inside one these two bytes do not occur."""
    stream.seek(0)
    found, last = 0, b""
    jpeg = stream.read(2) == b"\xff\xd8"
    while jpeg and (part := stream.read(1 << 20)):
        found += (last + part).count(_SCAN)
        last = part[-1:]
    stream.seek(0)
    return found


def image_problem(path: Path, options: ReadOptions) -> str | None:
    """Why the image at `path` cannot be used, or None. It is decoded once in full.

    Without options.decode only its first bytes are looked at.
    """
    try:
        with open_input(path) as stream:
            size = os.fstat(stream.fileno()).st_size
            if size > min(options.max_bytes, _MAX_FILE + 4 * options.image_pixels_max):
                return "a file too large"
            if not options.decode:
                return None if stream.read(16).startswith(_SIGNATURES) else "not an image"
            if (scans := _scans(stream)) > _MAX_SCANS:
                return f"a JPEG of {scans} scans"
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


IMAGES = FileKind(
    modality="image",
    suffixes=IMAGE_SUFFIXES,
    one="an image",
    many="images",
    example="picture.png",
    require=_require_pillow,
    problem=image_problem,
)
