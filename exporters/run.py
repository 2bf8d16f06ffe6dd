"""Running an exported ONNX file with onnxruntime alone: this module needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as states

from edge_pslora.errors import AdapterError, ModelError
from edge_pslora.exporters.adapter_file import OnnxAdapter
from edge_pslora.exporters.onnx_safety import check_onnx

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
_VALUE_ERRORS = (*RUN_ERRORS, ValueError)  # the last: a missing input
# of onnxruntime's own rewritings of the graph: its kernel for this one is slower than what it replaces
# (docs/EXPORTS.md); a version that does not know the name ignores it
SLOWER_FUSIONS = ["SkipLayerNormFusion"]
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

    input_types: name -> dtype, in the file's order. metadata: the file's own, by key. adapter: the one
    that is active in its runs; None: of a file that takes adapters, the base. most_rows: how many samples
    its user should give it at once.
    """

    path: Path
    input_types: Mapping[str, np.dtype[Any]]
    metadata: Mapping[str, str]
    session: Any = field(repr=False)
    adapter: OnnxAdapter | None = None
    most_rows: int = 32

    def using(self, adapter: OnnxAdapter | None) -> OnnxRunner:
        """The same session with another adapter, or none: to switch costs nothing but this object.

        Raises:
            AdapterError: it belongs to another base, or has inputs that this file lacks.
        """
        if adapter is not None:
            self._require_fit(adapter)
        return replace(self, adapter=adapter)

    def _require_fit(self, adapter: OnnxAdapter) -> None:
        takes = {value.name for value in self.session.get_overridable_initializers()}
        base = self.metadata.get("pslora.base_digest", "")
        unknown = sorted(adapter.shapes.keys() - takes)
        if base == adapter.facts.base_digest and not unknown:
            return
        raise AdapterError(
            str(adapter.path),
            expected=f"an adapter for {self.path}",
            found=f"an input {unknown[0]} that it lacks"
            if unknown and takes
            else f"one for the base {adapter.facts.base_digest[:12]}, not {base[:12]}"
            if takes
            else "a file that takes none",
            remedy="use the model.onnx that was exported with it",
        )

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
            logits: npt.NDArray[Any] = self.session.run(None, feed, self._run_options())[0]
        except RUN_ERRORS as problem:
            raise self._refused(problem) from problem
        return logits

    def run_values(self, outputs: Sequence[str], inputs: Mapping[str, Any]) -> list[Any]:
        """The named outputs. All are onnxruntime.OrtValue: an output can be the next run's input, uncopied.

        Raises:
            ModelError: names or shapes that the file does not have.
        """
        try:
            values: list[Any] = self.session.run_with_ort_values(list(outputs), dict(inputs))
        except _VALUE_ERRORS as problem:
            raise self._refused(problem) from problem
        return values

    def _run_options(self) -> Any:
        if self.adapter is None:
            return None
        options = onnxruntime.RunOptions()
        options.add_active_adapter(self.adapter.handle)
        return options

    def _refused(self, problem: Exception) -> ModelError:
        return ModelError(
            str(self.path),
            expected="inputs that the model can compute with",
            found=str(problem),
            remedy="check shapes and value ranges",
        )


def open_onnx(path: Path, *, threads: int | None = None, most_rows: int = 32) -> OnnxRunner:
    """Load a file for the CPU provider.

    Args:
        path: the .onnx file; its external data lies beside it.
        threads: per operator; None leaves it to onnxruntime (all cores).
        most_rows: samples that should be given to it at once.

    Raises:
        ModelError: the file is missing, damaged, or has inputs of an unknown type.
    """
    check_onnx(path, operators=False)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False  # the arena keeps the memory of the largest batch for good
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(
            str(path),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=SLOWER_FUSIONS,
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
    return OnnxRunner(path, types, metadata, session, most_rows=most_rows)


def run_onnx(
    path: Path, batch: Mapping[str, npt.NDArray[Any]], *, threads: int | None = None
) -> npt.NDArray[Any]:
    """Logits [N, C] of one batch; to run several, keep the runner of `open_onnx`."""
    return open_onnx(path, threads=threads).run(batch)
