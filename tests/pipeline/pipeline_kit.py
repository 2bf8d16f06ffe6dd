"""Real files for the tests of the whole way, and the command line as a function."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_pslora.cli.main import main
from edge_pslora.demo_data import load_digits

FULL_INK = 16
# what DESIGN.md promises of every generation
GENERATION_FILES = {
    "README.md",
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
    "anchor.safetensors",
    "head.safetensors",
    "history.safetensors",
    "manifest.json",
    "model.onnx",
    "model.safetensors",
    "report.html",
}
JSON_KEYS = {
    *("generation", "promoted", "reason", "task", "samples", "steps", "accuracy_before"),
    *("accuracy_after", "retention", "history_bytes", "peak_rss_bytes", "wall_seconds"),
    *("onnx_max_abs_error", "files"),
}
TOPICS = {
    "sport": "ball goal match team player coach league referee stadium score",
    "food": "bread soup cheese oven recipe salt kitchen dinner pepper sauce",
    "travel": "train hotel ticket airport island luggage passport harbour map tourist",
    "money": "bank loan interest market share price tax budget credit fund",
}


def digits(
    labels: Sequence[int], n: int = 200, *, part: str = "train", inverted: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The first n images float32 [n, 8, 8] in [0, 1] of these digits, and their labels int64 [n].

    part: "train" (even rows of the file) or "test" (odd rows).
    """
    images, names = load_digits()
    rows = np.flatnonzero(np.isin(names, labels))
    rows = rows[rows % 2 == (part == "test")][:n]
    ink = images[rows].astype(np.float32) / FULL_INK
    return (1 - ink if inverted else ink), names[rows]


def write_npz(path: Path, x: np.ndarray, y: np.ndarray) -> Path:
    np.savez(path, x=x, y=y)
    return path


def digits_npz(path: Path, labels: Sequence[int], n: int = 200, **more: Any) -> Path:
    """Flat rows [n, 64], which the small built-in network for tables takes."""
    x, y = digits(labels, n, **more)
    return write_npz(path, x.reshape(len(x), -1), y)


def write_csv(path: Path, x: np.ndarray, y: Sequence[Any], missing: str | None = None) -> Path:
    """A table with a header and the label last; about one cell in twenty is `missing`."""
    rng = np.random.default_rng(len(x))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*(f"f{i}" for i in range(x.shape[1])), "label"])
        for row, label in zip(x, y, strict=True):
            cells = [f"{value:g}" for value in row]
            if missing is not None:
                cells = [missing if rng.random() < 0.05 else cell for cell in cells]
            writer.writerow([*cells, label])
    return path


def write_jsonl(path: Path, topics: Sequence[str], n: int = 40, seed: int = 0) -> Path:
    """n short texts for each topic, in random order."""
    rng = np.random.default_rng(seed)
    rows = [
        {"text": "the " + " ".join(rng.choice(TOPICS[topic].split(), 8)), "label": topic}
        for topic in topics
        for _ in range(n)
    ]
    lines = [json.dumps(rows[i]) for i in rng.permutation(len(rows))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_images(folder: Path, labels: Sequence[int], n: int = 60, **more: Any) -> Path:
    """Grey PNG files of 16 x 16 pixels, one folder for each digit."""
    image = pytest.importorskip("PIL.Image")
    x, y = digits(labels, n, **more)
    for index, (pixels, label) in enumerate(zip(x, y, strict=True)):
        (folder / f"digit {label}").mkdir(parents=True, exist_ok=True)
        large = np.kron(255 * pixels, np.ones((2, 2))).astype(np.uint8)
        image.fromarray(large).save(folder / f"digit {label}" / f"{index}.png")
    return folder


def snapshot(folder: Path) -> dict[str, str]:
    """Relative path -> sha256 of every file below `folder`; empty folders count as well."""
    return {
        path.relative_to(folder).as_posix(): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        )
        for path in sorted(folder.rglob("*"))
        if path.name != "lock"
    }


def files_of(workspace: Path, number: int) -> dict[str, str]:
    """The files of a generation, by digest."""
    found = snapshot(workspace / "generations" / f"{number:06d}")
    return {name: digest for name, digest in found.items() if digest != "folder"}


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit code, the JSON object on stdout, and stderr."""

    code: int
    facts: dict[str, Any] = field(default_factory=dict)
    err: str = ""


def command_line(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """run("adapt", data, "--model", "auto", ...): always with --json, which must be one object."""

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = main([*map(str, arguments), "--json"])
        out, err = capsys.readouterr()
        assert out.count("\n") == 1, out
        return Outcome(code, json.loads(out), err)

    return run
