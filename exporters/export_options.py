"""What `edge-pslora export` was asked for. No torch, no onnx: the command line reads it to show help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from edge_pslora.errors import UsageError

Format = Literal["onnx", "safetensors", "peft", "ort-adapter", "delta"]
Quantization = Literal["int8", "int8-static"]
DEFAULT_RANK = 64
DEFAULT_DROP = 0.01
OPSETS = range(18, 24)
_ONNX_ONLY = ("opset", "external_data", "free_image_size", "kv_cache", "quantize")

_APART = (
    ("kv_cache", "quantize"),
    ("free_image_size", "quantize"),
    ("kv_cache", "free_image_size"),
)


@dataclass(frozen=True)
class ExportOptions:
    """format: of the files. max_rank: of a layer, where factors are computed (peft, ort-adapter).

    Format onnx only: opset: of the default domain; None: as published. external_data: weights in
    model.onnx_data. kv_cache: a language model that takes and gives its keys and values. quantize: int8
    (scales of activations are found while it runs) or int8-static (they are fixed beforehand).
    max_drop: of the headline figure by quantising, or by cutting factors (ort-adapter), as a fraction:
    0.01 is one point. free_image_size: a model of pictures that takes any height and width. patch: an
    earlier export's model.onnx, which gets other weights and stays what it is in all else. generations:
    how many an ort-adapter export holds: the chosen one and those before.
    """

    format: Format
    max_rank: int = DEFAULT_RANK
    opset: int | None = None
    external_data: bool = False
    kv_cache: bool = False
    quantize: Quantization | None = None
    max_drop: float = DEFAULT_DROP
    patch: Path | None = None
    free_image_size: bool = False
    generations: int = 1

    def __post_init__(self) -> None:
        formats, kinds = get_args(Format), get_args(Quantization)
        _require(self.format in formats, "--format", " or ".join(formats), self.format)
        _require(self.max_rank >= 1, "--max-rank", "a rank from 1", self.max_rank)
        _require(
            self.opset is None or self.opset in OPSETS,
            "--opset",
            f"{OPSETS[0]} to {OPSETS[-1]}",
            self.opset,
        )
        _require(
            self.quantize is None or self.quantize in kinds,
            "--quantize",
            " or ".join(kinds),
            self.quantize,
        )
        _require(0 <= self.max_drop <= 1, "--max-drop", "0 to 1", self.max_drop)
        _require(self.generations >= 1, "--generations", "a number from 1", self.generations)
        several = self.generations > 1
        _require(
            not several or self.format == "ort-adapter",
            "--generations",
            "--format ort-adapter",
            self.format,
        )
        for name in _ONNX_ONLY:
            flag = _flag(name)
            given = bool(getattr(self, name))
            _require(not given or self.format == "onnx", flag, "--format onnx", self.format)
            _require(not (given and self.patch), flag, "nothing else beside --patch", "both")
        _require(
            self.patch is None or self.format == "onnx", "--patch", "--format onnx", self.format
        )
        for one, other in _APART:
            both = getattr(self, one) and getattr(self, other)
            _require(not both, _flag(one), f"no {_flag(other)} beside it", "both")

    @property
    def needs_model(self) -> bool:
        """Whether the model has to be made again in torch: for another graph, or to be measured."""
        remade = self.opset is not None or self.kv_cache or self.free_image_size
        return remade or self.quantize is not None or self.format == "ort-adapter"


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _require(condition: bool, where: str, expected: str, found: object) -> None:
    if not condition:
        raise UsageError(where, expected=expected, found=str(found), remedy="change the option")
