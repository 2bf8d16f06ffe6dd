"""What DATA may be, as tasks of the mutant runner: every reader of edge_pslora.data, and `inspect`."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import warnings
import wave
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from edge_pslora.data import parquet_check, parquet_open
from edge_pslora.data.audio import clip_problem, read_clip
from edge_pslora.data.images import image_problem
from edge_pslora.data.options import ReadOptions
from edge_pslora.data.read import read_dataset
from edge_pslora.data.types import Dataset
from tests.torture import forged_data as forge
from tests.torture.mutant_runner import Task
from tests.torture.mutants import Mutant

LENIENT = ReadOptions(max_bad_fraction=0.5)
WINDOWS = ReadOptions(max_bad_fraction=0.5, window_seconds=1, rate_hz=10)
Forged = Callable[[bool], Iterator[Mutant]]

CSV = b"a,b,label\n1,2,x\n3.5,,y\n2,NA,z\n4,2,x\n"
TSV = b"1\t2\t0\n3\t4\t1\n2\t2\t0\n4\t1\t1\n"
JSONL = '{"text": "\u00fc", "label": "x"}\n{"text": "b", "label": "y"}\n'.encode() * 2
PROSE = b"One day there was a model.\n\nIt learned, and it did not forget; so it went on.\n" * 8
IMAGE_KINDS = ("png", "jpg", "gif", "webp", "tif", "bmp", "ppm")
AUDIO_KINDS = ("wav", "flac", "ogg")
_PIL = {"jpg": "JPEG", "tif": "TIFF"}


def data_tasks() -> list[tuple[Task, Forged]]:
    """Each format with what is forged for it."""
    tasks = [
        _file("csv", "d.csv", CSV, lambda quick: forge.table_forged(CSV, b",")),
        _file("data", "d.data", TSV, lambda quick: forge.table_forged(TSV, b"\t")),
        _file("tsv", "d.tsv", TSV, lambda quick: forge.table_forged(TSV, b"\t")),
        _file("jsonl", "d.jsonl", JSONL, lambda quick: forge.jsonl_forged(JSONL)),
        _file("txt", "d.txt", PROSE, lambda quick: forge.table_forged(PROSE, b" ")),
        _file("md", "d.md", PROSE, lambda quick: forge.table_forged(PROSE, b" ")),
        _file("npz", "d.npz", _npz(), forge.npz_forged),
        _file(
            "npy", "d/x.npy", _npy(_x()), lambda quick: forge.npy_forged(), {"d/y.npy": _npy(_y())}
        ),
        _file(
            "npy labels",
            "d/y.npy",
            _npy(_y()),
            lambda quick: forge.npy_forged(),
            {"d/x.npy": _npy(_x())},
        ),
        _file("parquet", "d.parquet", _parquet(), forge.parquet_forged),
        _recordings(),
    ]
    tasks += [_image(kind) for kind in IMAGE_KINDS]
    return tasks + [_audio(kind) for kind in AUDIO_KINDS]


def _file(
    name: str, target: str, content: bytes, pairs: Callable[[bool], Iterator[tuple[str, bytes]]],
    more: dict[str, bytes] | None = None,
) -> tuple[Task, Forged]:  # fmt: skip
    start = target.replace("y.npy", "x.npy")  # labels are read with what they belong to

    def read(folder: Path) -> None:
        check_dataset(read_dataset(folder / start, LENIENT))

    task = Task(
        name,
        {target: content, **(more or {})},
        target,
        read,
        lambda folder: ["inspect", str(folder / start)],
        memory=384 << 20 if name == "parquet" else 256 << 20,
        spawns=name == "parquet",
    )
    return task, lambda quick: forge.forged(pairs(quick))


def check_dataset(data: Dataset) -> None:
    """What was accepted keeps the promises of data/types.py."""
    train = data.train
    assert len(train.inputs) == len(train.targets) > 0
    if isinstance(train.inputs, np.ndarray):
        assert train.inputs.dtype == np.float32
        for start in range(0, len(train.inputs), 1 << 16):
            rows = train.inputs[start : start + (1 << 16)]
            bad = np.isinf(rows) if train.modality == "table" else ~np.isfinite(rows)
            assert not bad.any()
    if train.task_type == "regression":
        assert np.isfinite(train.targets).all()
    elif train.task_type == "classification":
        assert all(name and name.strip() == name for name in np.unique(train.targets).tolist())
    assert all((row.where + row.reason).isprintable() for row in data.rejected)


def _recordings() -> tuple[Task, Forged]:
    lines = [f"{n},{-n},{n * 100},{'ab'[n // 25]}" for n in range(50)]
    content = ("up,down,timestamp,label\n" + "\n".join(lines) + "\n").encode()

    def read(folder: Path) -> None:
        check_dataset(read_dataset(folder / "d.csv", WINDOWS))

    def pairs(quick: bool) -> Iterator[tuple[str, bytes]]:
        yield from forge.table_forged(content, b",")
        head = b"up,down,timestamp,label\n"
        for times in ((0, 1e308), (-1e308, 1e308), (0, 1e-300), (1e17, 1e18), (0, 0), (5, 1)):
            rows = [b"1,2,%r,a" % 0 for _ in range(3)] + [
                f"1,2,{t!r},a".encode() for t in times * 30
            ]
            yield f"times {times}", head + b"\n".join(rows) + b"\n"
        dates = [f"1,2,{year:04}-13-41T99:99:99Z,a" for year in (0, 1, 9999, 99999)]
        yield "dates that are none", head + "\n".join(dates * 9).encode()

    def argv(folder: Path) -> list[str]:
        return ["inspect", str(folder / "d.csv"), "--window", "1s", "--rate", "10"]

    # a window of too many or too few readings is a matter of --window: wrong use
    task = Task("sensor recordings", {"d.csv": content}, "d.csv", read, argv, codes=(2, 4))
    return task, lambda quick: forge.forged(pairs(quick))


def _image(kind: str) -> tuple[Task, Forged]:
    content = picture(kind)
    target = f"root/cat/a.{kind}"

    def read(folder: Path) -> None:
        path = folder / target
        if image_problem(path, LENIENT) is None:
            from PIL import Image

            ignored = (
                warnings.catch_warnings(action="ignore"),
                suppress(OSError),
            )  # changed meanwhile
            with ignored[0], ignored[1], Image.open(path) as image:
                assert 0 < image.size[0] * image.size[1] <= LENIENT.image_pixels_max

    task = Task(
        kind,
        {target: content, f"root/dog/b.{kind}": content},
        target,
        read,
        lambda folder: ["inspect", str(folder / "root")],
        memory=384 << 20,
    )
    return task, lambda quick: forge.forged(forge.image_forged(kind, content, quick))


def picture(kind: str) -> bytes:
    """A small picture of that kind."""
    from PIL import Image

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (9, 11, 3), dtype=np.uint8)
    out = io.BytesIO()
    options: dict[str, Any] = {"compression": "tiff_lzw"} if kind == "tif" else {}
    Image.fromarray(pixels).save(out, _PIL.get(kind, kind.upper()), **options)
    return out.getvalue()


def _audio(kind: str) -> tuple[Task, Forged]:
    content = _sound(kind)
    target = f"root/low/a.{kind}"

    def read(folder: Path) -> None:
        path = folder / target
        if clip_problem(path, LENIENT) is None:
            clip = read_clip(path, 2.0)
            assert len(clip.samples) > 0
            assert np.isfinite(clip.samples).all()

    task = Task(
        kind,
        {target: content, f"root/high/b.{kind}": content},
        target,
        read,
        lambda folder: ["inspect", str(folder / "root")],
    )
    return task, lambda quick: forge.forged(forge.audio_forged(kind, content, quick))


def _sound(kind: str) -> bytes:
    out = io.BytesIO()
    samples = (np.sin(np.arange(800) / 9) * 9000).astype("<i2")
    if kind == "wav":
        with wave.open(out, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(8000)
            file.writeframes(samples.tobytes())
    else:
        import soundfile

        soundfile.write(out, samples, 8000, format=kind.upper())
    return out.getvalue()


def _x() -> np.ndarray:
    return np.arange(12, dtype=np.float32).reshape(4, 3)


def _y() -> np.ndarray:
    return np.array(["a", "b", "ü", "a"])


def _npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def _npz() -> bytes:
    out = io.BytesIO()
    np.savez_compressed(out, x=_x(), y=_y())
    return out.getvalue()


def _parquet() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"a": [1.0, 2.0, 3.0, 4.0], "b": [4.0, 3.0, 2.0, None], "label": list("xyxy")})
    out = io.BytesIO()
    pq.write_table(table, out)
    return out.getvalue()


class Forked:
    """In the place of the module `subprocess` of a reader that has a file checked by another program: here
    that is a fork of this process with the same code and the same limits, without the seconds that a Python
    takes to start. Some mutants are checked by the real one (test_hostile.py)."""

    TimeoutExpired = subprocess.TimeoutExpired

    def __init__(self, main: Callable[[], int]) -> None:
        self.main = main

    def run(self, command: list[str], *, timeout: float, stdin: Any = None, **_: Any) -> Any:
        incoming, outgoing = os.pipe()
        child = os.fork()
        if child == 0:
            code = 2
            try:
                if stdin is not None:
                    os.dup2(stdin.fileno(), 0)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                sys.argv = command[2:]
                sys.stdin = open(0, closefd=False)  # noqa: SIM115
                sys.stdout = open(outgoing, "w", closefd=False)  # noqa: SIM115
                code = self.main()
                sys.stdout.flush()
            finally:
                os._exit(code)
        os.close(outgoing)
        with open(incoming, "rb") as answer:  # noqa: PTH123
            said = answer.read()
        status = os.waitpid(child, 0)[1]
        return subprocess.CompletedProcess(command, os.waitstatus_to_exitcode(status), said, b"")


def fork_checkers() -> None:
    """From here on."""
    from edge_pslora.exporters import onnx_trial, onnx_trial_child

    parquet_open.subprocess = Forked(parquet_check.main)  # type: ignore[assignment]
    onnx_trial.subprocess = Forked(onnx_trial_child.main)  # type: ignore[assignment]
