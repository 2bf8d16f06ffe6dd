"""A health check: does the model that serves give the right answers here?

    python health_check.py WORKSPACE PROBE.npz LEAST_ACCURACY

`edge-pslora apply` runs a command like this after the new model has begun to serve: exit code 0 keeps
it, three failures bring the old one back. A real one would also ask the device's own service. The
probe is a handful of samples (x, y) that this device must get right, put there when it was made.
onnxruntime and numpy are all it needs.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np

os.environ["ORT_DISABLE_TELEMETRY"] = (
    "1"  # said before it is loaded, or it reports over the network
)
import onnxruntime


def accuracy(workspace: Path, probe: Path) -> float:
    """Of the generation that `current` names; reading it needs no lock."""
    generation, _ = (workspace / "current").read_text(encoding="ascii").split()
    model = workspace / "generations" / generation / "model.onnx"
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    labels = json.loads(session.get_modelmeta().custom_metadata_map["pslora.labels"])
    with np.load(probe, allow_pickle=False) as archive:
        x, y = archive["x"].astype(np.float32), archive["y"].astype(str)
    logits = session.run(None, {session.get_inputs()[0].name: x})[0]
    if not np.isfinite(logits).all():
        return 0.0
    return float(np.mean(np.array(labels)[logits.argmax(axis=1)] == y))


def main(workspace: Path, probe: Path, least: float) -> int:
    found = accuracy(workspace, probe)
    print(f"accuracy on the probe: {found:.3f}, at least {least:.3f} wanted", file=sys.stderr)
    return 0 if found >= least else 1


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: python health_check.py WORKSPACE PROBE.npz LEAST_ACCURACY")
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])))
