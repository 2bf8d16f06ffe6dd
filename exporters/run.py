"""Running an exported ONNX file with onnxruntime alone: this module needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as states

from edge_pslora.errors import ModelError

LOAD_ERRORS = (
    states.Fail,
    states.InvalidGraph,
    states.InvalidProtobuf,
    states.InvalidArgument,
    states.NoSuchFile,
    states.NotImplemented,
    states.RuntimeException,
)
RUN_ERRORS = (states.Fail, states.InvalidArgument, states.RuntimeException)
_ERRORS_ONLY = 3  # onnxruntime's log level: its warnings are about its own optimiser

_TYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(double)": np.dtype(np.float64),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(uint8)": np.dtype(np.uint8),
    "tensor(bool)": np.dtype(np.bool_),
}


@dataclass(frozen=True)
class OnnxRunner:
    """An open session; see open_onnx.

    input_types: name -> dtype, in the file's order. metadata: the file's own, by key.
    """

    path: Path
    input_types: Mapping[str, np.dtype[Any]]
    metadata: Mapping[str, str]
    session: Any = field(repr=False)

    def run(self, batch: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """Logits [N, C] for one batch; each array is cast to the input's dtype.

        Raises:
            ModelError: other input names than the file's, or shapes that it refuses.
        """
        if batch.keys() != self.input_types.keys():
            raise ModelError(
                str(self.path),
                expected=f"the inputs {', '.join(self.input_types)}",
                found=", ".join(batch) or "none",
                remedy="give exactly these arrays",
            )
        feed = {
            name: np.ascontiguousarray(batch[name], dtype=dtype)
            for name, dtype in self.input_types.items()
        }
        try:
            logits: npt.NDArray[Any] = self.session.run(None, feed)[0]
        except RUN_ERRORS as problem:
            raise ModelError(
                str(self.path),
                expected="inputs that the model can compute with",
                found=str(problem),
                remedy="check shapes and value ranges",
            ) from problem
        return logits


def open_onnx(path: Path, *, threads: int | None = None) -> OnnxRunner:
    """Load a file for the CPU provider.

    Args:
        path: the .onnx file; its external data lies beside it.
        threads: per operator; None leaves it to onnxruntime (all cores).

    Raises:
        ModelError: the file is missing, damaged, or has inputs of an unknown type.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False  # the arena keeps the memory of the largest batch for good
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    except LOAD_ERRORS as problem:
        raise ModelError(
            str(path),
            expected="an ONNX file that onnxruntime can load",
            found=str(problem),
            remedy="export it again",
        ) from problem
    types: dict[str, np.dtype[Any]] = {}
    for value in session.get_inputs():
        if value.type not in _TYPES:
            raise ModelError(
                f"{path}, {value.name}",
                expected=f"one of {', '.join(_TYPES)}",
                found=value.type,
                remedy="export it again",
            )
        types[value.name] = _TYPES[value.type]
    metadata = dict(session.get_modelmeta().custom_metadata_map)
    return OnnxRunner(path, types, metadata, session)


def run_onnx(
    path: Path, batch: Mapping[str, npt.NDArray[Any]], *, threads: int | None = None
) -> npt.NDArray[Any]:
    """Logits [N, C] of one batch; to run several, keep the runner of `open_onnx`."""
    return open_onnx(path, threads=threads).run(batch)
