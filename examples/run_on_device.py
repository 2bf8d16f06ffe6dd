"""Run a generation on a device: onnxruntime and numpy, no torch and no edge-pslora.

    python examples/run_on_device.py WORKSPACE DATA.npz

`current` in the workspace names the generation that serves. Its model.onnx takes the raw values of
the data, and carries the names of its outputs as metadata. Reads x (and y, if it is there) from DATA.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np

# onnxruntime would report every session to its makers over the network: said before it is loaded
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime


def serving_model(workspace: Path) -> Path:
    """The ONNX file of the generation that serves; reading needs no lock, publishing is atomic."""
    generation, _ = (workspace / "current").read_text(encoding="ascii").split()
    return workspace / "generations" / generation / "model.onnx"


def main(workspace: Path, data: Path) -> None:
    path = serving_model(workspace)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    labels = json.loads(session.get_modelmeta().custom_metadata_map["pslora.labels"])
    with np.load(data, allow_pickle=False) as archive:
        x = archive["x"].astype(np.float32)
        y = archive["y"].astype(str) if "y" in archive else None
    name = session.get_inputs()[0].name
    predicted = []
    for start in range(0, len(x), 32):  # the batch axis is dynamic: any size will do
        logits = session.run(None, {name: x[start : start + 32]})[0]
        predicted += [labels[i] for i in logits.argmax(axis=1)]
    print(f"{path}: {len(labels)} labels, {len(x)} samples")
    print("first answers:", *predicted[:10])
    if y is not None:
        print(f"accuracy: {np.mean(np.array(predicted) == y):.3f}")
    assert "torch" not in sys.modules


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python examples/run_on_device.py WORKSPACE DATA.npz")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
