"""Learn from tables with the Python API: three sessions, then a look at what is kept.

    python examples/adapt_table.py [FOLDER]

Writes the bundled handwritten digits as CSV files (64 columns and a label, some cells empty), adapts
to one file after the other, and measures every generation on all digits. No sample of an earlier
session is used for training; each session brings digits that the model has never seen.
"""

from __future__ import annotations

import csv
import sys
import tempfile
from pathlib import Path

import numpy as np

from edge_pslora import Workspace, adapt, evaluate
from edge_pslora.demo_data import load_digits

SESSIONS = ((0, 1, 2, 3), (4, 5, 6), (7, 8, 9))


def write_table(path: Path, rows: np.ndarray, labels: np.ndarray, seed: int) -> Path:
    """One line per digit, with 2 % of the cells left empty, as real tables have them."""
    empty = np.random.default_rng(seed).random(rows.shape) < 0.02
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*(f"ink {i}" for i in range(rows.shape[1])), "label"])
        for row, missing, label in zip(rows, empty, labels, strict=True):
            writer.writerow([*("" if m else v for v, m in zip(row, missing, strict=True)), label])
    return path


def main(folder: Path) -> None:
    images, labels = load_digits()
    rows = images.reshape(len(images), -1)
    held_out = np.arange(len(rows)) % 4 == 0
    test = write_table(folder / "test.csv", rows[held_out], labels[held_out], seed=99)
    workspace = folder / "workspace"
    for number, digits in enumerate(SESSIONS):
        chosen = ~held_out & np.isin(labels, digits)
        data = write_table(folder / f"session {number}.csv", rows[chosen], labels[chosen], number)
        # --model is needed the first time; afterwards the workspace knows
        result = adapt(data, model="auto" if number == 0 else None, workspace=workspace)
        print(f"session {number}: digits {digits}, promoted: {result.promoted} ({result.reason})")
        known = {name for numbers in SESSIONS[: number + 1] for name in map(str, numbers)}
        per_label = evaluate(workspace, test).per_label
        kept = float(np.mean([per_label[name] for name in sorted(known)]))
        print(f"  accuracy on the {len(known)} digits known by now: {kept:.3f}")
        print(f"  history: {result.metrics['history_bytes']} bytes, the same after every session")
    opened = Workspace.open(workspace)
    print("generations:", *opened.generations())
    print("the model to deploy:", result.to_dict()["files"]["model.onnx"])


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
