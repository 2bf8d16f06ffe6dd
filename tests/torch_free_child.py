"""Runs ONNX files where torch cannot be imported. See torch_free.py.

One JSON object a line on stdin: {"model": FILE, "inputs": FILE.npz, "output": FILE.npy}; one line on
stdout for each: "done", or what went wrong.
"""

from __future__ import annotations

import json
import sys
from importlib.abc import MetaPathFinder
from typing import Any

# what a device that only runs the file need not have
ABSENT = {"torch", "transformers", "onnx", "onnx_ir", "onnxscript", "safetensors", "edge_pslora"}


class _Absent(MetaPathFinder):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}")


def main() -> None:
    sys.meta_path.insert(0, _Absent())
    import numpy as np
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as states

    wrong = (states.Fail, states.InvalidArgument, states.InvalidGraph, states.InvalidProtobuf)
    wrong += (states.NoSuchFile, states.NotImplemented, states.RuntimeException)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    for line in sys.stdin:
        task = json.loads(line)
        try:
            session = onnxruntime.InferenceSession(task["model"], options)
            with np.load(task["inputs"], allow_pickle=False) as inputs:
                np.save(task["output"], session.run(None, dict(inputs))[0])
            answer = "done"
        except (*wrong, ValueError, OSError) as problem:
            answer = f"{type(problem).__name__}: {problem}".replace("\n", " ")
        there = ABSENT & {name.partition(".")[0] for name in sys.modules}
        print(f"imported: {there}" if there else answer, flush=True)


if __name__ == "__main__":
    main()
