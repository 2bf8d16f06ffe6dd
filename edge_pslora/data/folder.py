"""A folder: train, valid and test as mlx-lm lays them out, class folders, recordings, or texts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from edge_pslora.data.class_folders import class_folders
from edge_pslora.data.files import READERS, read_file
from edge_pslora.data.folder_files import prose_files, recording_files
from edge_pslora.data.media import read_media
from edge_pslora.data.options import ReadOptions
from edge_pslora.data.prose import read_prose_files
from edge_pslora.data.recordings import read_recordings
from edge_pslora.data.source import cannot_open, shown
from edge_pslora.data.tally import Part
from edge_pslora.data.types import Samples
from edge_pslora.errors import DataError

PART_NAMES = ("train", "valid", "test")
PART_SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet", ".npz", ".txt", ".md")
_LAYOUT = "a train.jsonl (.csv, .parquet, .npz), or one folder of images or recordings per class"


def _part_files(root: Path) -> dict[str, Path]:
    """train/valid/test -> its file."""
    found: dict[str, Path] = {}
    for name in PART_NAMES:
        files = [root / (name + suffix) for suffix in PART_SUFFIXES]
        files += [root / f"{name}_x.npy", *([root / "x.npy"] if name == "train" else [])]
        files = [file for file in files if os.path.lexists(file)]
        if len(files) > 1:
            raise DataError(
                shown(root),
                expected=f"one file for {name}",
                found=", ".join(file.name for file in files),
                remedy="keep one of them",
            )
        if files:
            found[name] = files[0]
    return found


def _inside(file: Path, root: Path) -> Path:
    """`file`, unless it is a link that leads out of the folder."""
    if file.is_symlink():
        try:
            target = file.resolve(strict=True)
        except (OSError, RuntimeError) as error:
            raise DataError(
                shown(file),
                expected="a file",
                found="a symbolic link to nothing",
                remedy="repair the link",
            ) from error
        if not target.is_relative_to(root.resolve()):
            raise DataError(
                shown(file),
                expected="a file inside the folder",
                found="a symbolic link that leaves it",
                remedy="copy the file into the folder",
            )
    return file


def _media_parts(root: Path) -> dict[str, Path]:
    """train/valid/test -> its folder of class folders, where all sub-folders have such names."""
    folders = {folder.name: folder for folder in class_folders(root)}
    if "train" not in folders or not set(folders) <= {*PART_NAMES, "val"}:
        return {}
    if not class_folders(folders["train"]):
        return {}
    if "val" in folders and "valid" not in folders:
        folders["valid"] = folders["val"]
    return {name: _inside(folders[name], root) for name in PART_NAMES if name in folders}


def _check_same(train: Samples, other: Samples, where: str) -> None:
    """A part must look like the training part, or no figure measured on it means anything."""
    pairs: list[tuple[str, object, object]] = [
        ("the modality", train.modality, other.modality),
        ("the columns", train.feature_names, other.feature_names),
    ]
    if isinstance(train.inputs, np.ndarray) and isinstance(other.inputs, np.ndarray):
        pairs.append(("the sample shape", train.inputs.shape[1:], other.inputs.shape[1:]))
    for what, expected, found in pairs:
        if expected != found:
            raise DataError(
                where,
                expected=f"{what} of the training part, {shown(str(expected), 100)}",
                found=shown(str(found), 100),
                remedy="make the parts alike",
            )


def _read_parts(
    paths: dict[str, Path], read: Callable[[Path, ReadOptions], Part], options: ReadOptions
) -> dict[str, Part]:
    parts = {"train": read(paths["train"], options)}
    train = parts["train"].samples
    # What the training labels are decides what the others have to be.
    options = replace(options, task_type=train.task_type)
    if train.modality in ("image", "audio"):
        options = replace(options, task_type=None)
    for name in PART_NAMES[1:]:
        if name in paths:
            parts[name] = read(paths[name], options)
            _check_same(train, parts[name].samples, shown(paths[name]))
    return parts


def _recording_parts(root: Path) -> dict[str, Path]:
    """train/valid/test -> its folder of recordings; or all of `root` as train."""
    folders = {name: root / name for name in PART_NAMES if (root / name).is_dir()}
    return folders if "train" in folders else {"train": root}


def _read_recordings(folder: Path, options: ReadOptions) -> Part:
    return read_recordings(folder, recording_files(folder), options)


def read_folder(root: Path, options: ReadOptions) -> dict[str, Part]:
    """The parts of a folder by name; "train" is always there.

    Raises:
        DataError: neither layout, a damaged part, or parts that do not fit each other.
        InputError: what decodes images or recordings is not installed.
    """
    files = _part_files(root)
    if "train" in files:
        files = {name: _inside(file, root) for name, file in files.items()}
        return _read_parts(files, read_file, options)
    if options.window_seconds is not None:
        return _read_parts(_recording_parts(root), _read_recordings, options)
    if texts := prose_files(root, options):
        return {"train": read_prose_files(root, texts, options)}
    if folders := _media_parts(root):
        return _read_parts(folders, read_media, options)
    if files or not class_folders(root):
        raise DataError(
            shown(root),
            expected=_LAYOUT,
            found=_summary(root, (file.name for file in files.values())),
            remedy="add it, or give the data file itself",
        )
    return {"train": read_media(root, options)}


def _summary(root: Path, names: Iterable[str]) -> str:
    found = sorted(names) or _first_names(root)
    return shown(", ".join(found)) if found else "an empty folder"


def _first_names(root: Path) -> list[str]:
    try:
        names = sorted(entry.name for entry in root.iterdir())
    except OSError as error:
        raise cannot_open(root, error) from error
    readable = [name for name in names if Path(name).suffix.casefold() in READERS]
    return (readable or names)[:5]
