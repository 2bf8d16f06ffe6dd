"""One data file, read by what its name says it is."""

from __future__ import annotations

from pathlib import Path

from edge_pslora.data.jsonl import read_jsonl
from edge_pslora.data.npy import read_npy
from edge_pslora.data.npz import read_npz
from edge_pslora.data.options import ReadOptions
from edge_pslora.data.parquet import read_parquet
from edge_pslora.data.prose import PROSE_SUFFIXES, is_prose, read_prose
from edge_pslora.data.recordings import read_recordings
from edge_pslora.data.source import file_status, shown
from edge_pslora.data.table import read_table
from edge_pslora.data.tally import Part
from edge_pslora.errors import DataError

READERS = {
    ".npz": read_npz,
    ".npy": read_npy,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".csv": read_table,
    ".tsv": read_table,
    ".data": read_table,
    ".parquet": read_parquet,
    ".txt": read_table,
    ".md": read_prose,
}

_PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt", ".joblib", ".dill")
_REMEDIES = {
    **dict.fromkeys(_PICKLES, "save the arrays with numpy.savez(path, x=..., y=...)"),
    **dict.fromkeys(
        (".zip", ".tar", ".gz", ".tgz", ".xz", ".bz2", ".zst", ".7z"), "unpack it first"
    ),
    ".json": "write one JSON object per line into a .jsonl",
    **dict.fromkeys((".arrow", ".feather", ".orc"), "write it as .parquet"),
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "export it as .csv"),
    ".safetensors": "give the data here and the model with --model and --weights",
    ".onnx": "give the data here and the model with --model",
}


def read_file(path: Path, options: ReadOptions) -> Part:
    """Reads one file of READERS; a .txt or .md as text or as a table, a table of readings as windows.

    Raises:
        DataError: an unknown or refused kind of file, or one that cannot be read.
    """
    suffix = path.suffix.casefold()
    reader = READERS.get(suffix)
    if reader is not None and options.window_seconds is not None:
        return read_recordings(path, [(path, None)], options)
    if suffix in PROSE_SUFFIXES and is_prose(path, options):
        reader = read_prose
    elif suffix == ".md":
        reader = read_table
    if reader is not None:
        return reader(path, options)
    file_status(path)  # a missing file is worth more than a wrong suffix
    if suffix in _PICKLES:
        found = f"a {suffix} file, which can hold a Python pickle: never loaded"
    else:
        found = f"a {shown(suffix, 20)} file" if suffix else "a file without a suffix"
    raise DataError(
        shown(path),
        expected="a folder, or a file " + ", ".join(READERS),
        found=found,
        remedy=_REMEDIES.get(suffix, "convert it to one of these"),
    )
