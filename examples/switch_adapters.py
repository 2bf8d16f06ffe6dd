"""One file, one session, several generations: onnxruntime and numpy, no torch and no edge-pslora.

    edge-pslora export WORKSPACE FOLDER --format ort-adapter --generations 3
    python examples/switch_adapters.py FOLDER DATA.npz

Loads FOLDER/model.onnx once, then asks it with every adapter in turn. A new generation needs its
adapter only. onnxruntime does not notice flipped bits in an adapter's values, so the sha256 in the
JSON file beside it is compared first.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

import numpy as np

# onnxruntime would report every session to its makers over the network: said before it is loaded
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime


def load(path: Path) -> tuple[onnxruntime.RunOptions, list[str], onnxruntime.LoraAdapter]:
    """What makes an adapter active in a run, and the names of the outputs then.

    The last one has to be kept as long as the run options are used.
    """
    facts = json.loads(path.with_suffix(".json").read_text(encoding="ascii"))
    if hashlib.sha256(path.read_bytes()).hexdigest() != facts["sha256"]:
        sys.exit(f"{path} is damaged")
    adapter = onnxruntime.LoraAdapter()
    adapter.Load(str(path))
    options = onnxruntime.RunOptions()
    options.add_active_adapter(adapter)
    return options, facts["labels"], adapter


def main(folder: Path, data: Path) -> None:
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = (
        3  # it warns that adapter inputs can be overridden: that is the point
    )
    session = onnxruntime.InferenceSession(
        str(folder / "model.onnx"), settings, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    with np.load(data, allow_pickle=False) as archive:
        x, y = archive["x"].astype(np.float32), archive["y"].astype(str)
    for path in sorted(folder.glob("*.onnx_adapter")):
        options, labels, _adapter = load(path)
        logits = session.run(None, {name: x}, options)[0]
        right = np.array(labels)[logits.argmax(axis=1)] == y
        size = path.stat().st_size
        print(f"{path.name}: {size} bytes, {len(labels)} labels, accuracy: {right.mean():.3f}")
    assert "torch" not in sys.modules


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python examples/switch_adapters.py FOLDER DATA.npz")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
