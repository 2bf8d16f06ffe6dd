"""A health check: does the model that serves give the right answers here?

    EDGE_PSLORA_MODEL=model.onnx python health_check.py PROBE.npz LEAST_ACCURACY

`edge-pslora apply` runs a command like this when the new model has begun to serve, and names its file
in EDGE_PSLORA_MODEL: exit code 0 keeps the model, three failures bring the old one back. A real check
would also ask the service that uses the model. The probe is a handful of samples (x, y) that this
device must get right, put there when it was made. onnxruntime and numpy are all it needs.
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


def accuracy(model: Path, probe: Path) -> float:
    """The share of the probe that it gets right; 0 for a model that answers with NaN."""
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    labels = json.loads(session.get_modelmeta().custom_metadata_map["pslora.labels"])
    with np.load(probe, allow_pickle=False) as archive:
        x, y = archive["x"].astype(np.float32), archive["y"].astype(str)
    logits = session.run(None, {session.get_inputs()[0].name: x})[0]
    if not np.isfinite(logits).all():
        return 0.0
    return float(np.mean(np.array(labels)[logits.argmax(axis=1)] == y))


def main(probe: Path, least: float) -> int:
    found = accuracy(Path(os.environ["EDGE_PSLORA_MODEL"]), probe)
    print(f"accuracy on the probe: {found:.3f}, at least {least:.3f} wanted", file=sys.stderr)
    return 0 if found >= least else 1


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: EDGE_PSLORA_MODEL=FILE python health_check.py PROBE.npz LEAST_ACCURACY")
    sys.exit(main(Path(sys.argv[1]), float(sys.argv[2])))
