"""Class folders of images or of recordings: which of the two, by what they hold."""

from __future__ import annotations

from pathlib import Path

from edge_pslora.data.audio import RECORDINGS
from edge_pslora.data.class_folders import FileKind, names_in, read_class_folders
from edge_pslora.data.images import IMAGES
from edge_pslora.data.options import ReadOptions
from edge_pslora.data.source import shown
from edge_pslora.data.tally import Part
from edge_pslora.errors import DataError

KINDS = (IMAGES, RECORDINGS)


def read_media(root: Path, options: ReadOptions) -> Part:
    """Reads root/<class>/**/<file>, all images or all recordings.

    Raises:
        DataError: neither, both, or too many files that are unreadable.
        InputError: what decodes them is not installed.
    """
    return read_class_folders(root, options, _kind(root))


def _kind(root: Path) -> FileKind:
    first: dict[str, Path] = {}
    for path in names_in(root):
        for kind in KINDS:
            if kind.named(path):
                first.setdefault(kind.modality, path)
    found = [kind for kind in KINDS if kind.modality in first]
    if len(found) > 1:
        names = [shown(first[kind.modality].relative_to(root), 60) for kind in found]
        raise DataError(
            shown(root),
            expected="class folders of images or of recordings",
            found=f"both, such as {' and '.join(names)}",
            remedy="give one kind at a time, each with a --workspace of its own",
        )
    return found[0] if found else _neither(root)


def _neither(root: Path) -> FileKind:
    raise DataError(
        shown(root),
        expected="one folder of images or of recordings per class",
        found="no image and no recording",
        remedy=f"lay it out as FOLDER/class/{IMAGES.example} or FOLDER/class/{RECORDINGS.example}",
    )
