"""Notice on a device that its data have changed: no labels, no torch, a few hundred bytes of memory.

    python examples/watch_for_drift.py WORKSPACE IMAGES.npz

The generation that serves answers image after image; DriftDetector watches how sure it is. After 1,000
images the scanner is exchanged for one that draws white on black. Time for another `edge-pslora adapt`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from edge_pslora import DriftDetector, Workspace
from edge_pslora.exporters.run import open_onnx


def confidence(logits: np.ndarray) -> float:
    """How sure the model is of its answer: the largest of the softmax of logits [1, C]."""
    shares = np.exp(logits - logits.max())
    return float(shares.max() / shares.sum())


def main(workspace: Path, data: Path) -> None:
    model = open_onnx(Workspace.open(workspace).published(None).file("model.onnx"))
    with np.load(data, allow_pickle=False) as archive:
        images = archive["x"].astype(np.float32)
    rng = np.random.default_rng(0)
    detector = DriftDetector(reference=300)
    alarms = 0
    for row in rng.integers(len(images), size=300 + 1000):  # the first 300 say what is normal
        alarms += detector.update(confidence(model.run({"x": images[row : row + 1]})))
    print(f"1000 images as before: {alarms} alarms")
    changed = images.max() - images
    for count, row in enumerate(rng.integers(len(images), size=1000), start=1):
        if detector.update(confidence(model.run({"x": changed[row : row + 1]}))):
            print(f"images seen from the new scanner until the alarm: {count}")
            break
    assert "torch" not in sys.modules


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python examples/watch_for_drift.py WORKSPACE IMAGES.npz")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
