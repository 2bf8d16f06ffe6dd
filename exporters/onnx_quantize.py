"""int8 by onnxruntime's own quantiser: which nodes, which options, and no trace left behind. No torch.

What was measured to choose them stands in docs/EXPORTS.md. Conv always gets fixed scales: with scales
found while it runs (ConvInteger) MobileNetV1 took four times as long as in float. MatMul and Gather get the
kind that was asked for. What is written are operators of the ONNX standard alone.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnxruntime.capi import onnxruntime_pybind11_state as states

from edge_pslora.errors import EdgePsloraError, ModelError
from edge_pslora.exporters.export_options import Quantization
from edge_pslora.exporters.onnx_file import EXTERNAL_ABOVE
from edge_pslora.exporters.onnx_prepare import Layer, prepare
from edge_pslora.models.failures import FOREIGN_ERRORS, first_line
from edge_pslora.workspace.durable import storage_errors

DYNAMIC: Quantization = "int8"
# Products of 8 by 8 bits are summed in pairs of 16 bits on x86 without VNNI, and may not fit. With 7
# bits of a weight they do.
SAFE_BITS, FULL_BITS = 7, 8

_STATIC_OPS = ("Conv", "MatMul", "Gather", "Clip", "Relu")
_DYNAMIC_OPS = ("MatMul", "Gather")
_ACTIVATIONS = ("Clip", "Relu")
# outputs of MatMul stay in float: as fast, and one rounding less
_STATIC_OPTIONS = {"MatMulConstBOnly": True, "OpTypesToExcludeOutputQuantization": ["MatMul"]}
_DYNAMIC_OPTIONS = {"MatMulConstBOnly": True}
_PREPARED, _RANGES, _HALF = "prepared.onnx", "ranges.json", "half.onnx"

# what onnx and onnxruntime raise derives from Exception alone
_TOOL_ERRORS = (
    *FOREIGN_ERRORS,
    onnx.checker.ValidationError,
    onnx.shape_inference.InferenceError,
    states.Fail,
    states.InvalidArgument,
    states.InvalidGraph,
    states.InvalidProtobuf,
    states.NotImplemented,
    states.RuntimeException,
)

Batch = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Prepared:
    """folder: where all its files lie. layers: in the graph's order. metadata: of the float file.

    large: weights that do not fit into one file.
    """

    folder: Path
    layers: tuple[Layer, ...]
    metadata: Mapping[str, str]
    large: bool

    @property
    def path(self) -> Path:
        return self.folder / _PREPARED


def prepare_file(source: Path, folder: Path) -> Prepared:
    """Writes folder/prepared.onnx, which computes what `source` does.

    Raises:
        ModelError: nothing in the file can be quantised.
    """
    with _tools(folder):
        model = ir.load(source)
        layers = prepare(model)
        if not layers:
            raise ModelError(
                "--quantize",
                expected="float32 weights of MatMul, Gemm, Conv or Gather nodes",
                found="none in this model",
                remedy="export it without --quantize",
            )
        size = sum(t.nbytes for v in model.graph.initializers.values() if (t := v.const_value))
        large = size > EXTERNAL_ABOVE
        ir.save(model, folder / _PREPARED, external_data=f"{_PREPARED}_data" if large else None)
    return Prepared(folder, layers, dict(model.metadata_props), large)


def quantize(
    prepared: Prepared,
    kind: Quantization,
    layers: Collection[str],
    bits: int,
    samples: Sequence[Batch],
    path: Path,
) -> None:
    """Writes `path`, in the folder of `prepared`: these layers in int8, the others in float.

    Args:
        layers: at least one name.
        bits: of a weight, SAFE_BITS or FULL_BITS.
        samples: to find the scales that are fixed. They are run once; later calls use what was found.

    Raises:
        EdgePsloraError: onnxruntime's quantiser could not.
    """
    fixed, running = _split(prepared.layers, kind, layers)
    with _tools(prepared.folder):
        source = prepared.path
        if fixed:
            target = prepared.folder / _HALF if running else path
            _fixed(prepared, source, fixed, bits, samples, target)
            source = target
        if running:
            _running(prepared, source, running, bits, path)


def _split(
    layers: Collection[Layer], kind: Quantization, chosen: Collection[str]
) -> tuple[list[str], list[str]]:
    """Names of the chosen layers with fixed scales, and of those with scales found while running."""
    fixed: list[str] = []
    running: list[str] = []
    for layer in layers:
        if layer.name in chosen:
            found_running = kind == DYNAMIC and layer.op_type in _DYNAMIC_OPS
            (running if found_running else fixed).append(layer.name)
    return fixed, running


def _fixed(
    prepared: Prepared,
    source: Path,
    nodes: Sequence[str],
    bits: int,
    samples: Sequence[Batch],
    target: Path,
) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    quantize_static(
        source,
        target,
        _reader(samples),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=list(_STATIC_OPS),
        nodes_to_quantize=[*nodes, *_activations_behind(source, nodes)],
        per_channel=True,
        reduce_range=bits == SAFE_BITS,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        use_external_data_format=prepared.large,
        extra_options=dict(_STATIC_OPTIONS),
        calibration_cache_path=prepared.folder / _RANGES,
    )


def _running(
    prepared: Prepared, source: Path, nodes: Sequence[str], bits: int, target: Path
) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        source,
        target,
        op_types_to_quantize=list(_DYNAMIC_OPS),
        nodes_to_quantize=list(nodes),
        per_channel=True,
        reduce_range=bits == SAFE_BITS,
        weight_type=QuantType.QInt8,
        use_external_data_format=prepared.large,
        extra_options=dict(_DYNAMIC_OPTIONS),
    )


def _reader(samples: Sequence[Batch]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """The samples, one after the other."""

        def __init__(self) -> None:
            self.left = iter(samples)

        def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
            batch = next(self.left, None)
            return None if batch is None else {n: np.ascontiguousarray(a) for n, a in batch.items()}

    return Reader()


def _activations_behind(source: Path, nodes: Collection[str]) -> list[str]:
    """Clip and Relu right behind these nodes: the scale of a convolution's output does their work."""
    graph = onnx.load(source, load_external_data=False).graph
    outputs = {node.output[0] for node in graph.node if node.name in nodes}
    return [n.name for n in graph.node if n.op_type in _ACTIVATIONS and n.input[0] in outputs]


@contextmanager
def _tools(folder: Path) -> Iterator[None]:
    """onnxruntime's tools write temporary files where Python says, and advice to the root logger.

    Here the files go into `folder`, the advice nowhere, and what they raise becomes one line.
    """
    quiet = logging.NullHandler()  # without a handler logging.warning() would install one for good
    before, disabled = tempfile.tempdir, logging.root.manager.disable
    logging.root.addHandler(quiet)
    logging.disable(logging.WARNING)
    tempfile.tempdir = str(folder)
    try:
        with storage_errors(folder, "temporary files"):
            yield
    except EdgePsloraError:
        raise
    except _TOOL_ERRORS as problem:
        raise EdgePsloraError(
            "--quantize",
            expected="a model that onnxruntime's quantiser can take",
            found=first_line(problem),
            remedy="export it without --quantize, and report the model's architecture",
        ) from problem
    finally:
        tempfile.tempdir = before
        logging.disable(disabled)
        logging.root.removeHandler(quiet)
