"""What a loaded model looks like to training and export, whatever its source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edge_pslora.data.types import Modality, Samples

SourceKind = Literal["huggingface", "factory", "object", "exported", "auto"]
# what `model=` takes: --model's text, or from Python a module or a function that returns one
GivenModule = nn.Module | Callable[[], nn.Module]
ModelArgument = str | GivenModule


@dataclass(frozen=True)
class ModelSource:
    """Where a model came from; kept in workspace.json so that later sessions need no --model.

    reference: huggingface: the folder's name (its files are copied to base/); factory:
        "package.module:factory"; object: the name of the module's class, to tell the user; exported:
        the name of the .pt2 file (copied to base/); auto: "".
    options: everything else that loading needs (image size and scaling, text length, auto network's
        shape, ...): JSON values only.
    """

    kind: SourceKind
    modality: Modality
    reference: str = ""
    options: dict[str, Any] = field(default_factory=dict)


class EncodedInputs(Protocol):
    """Inputs of N samples, prepared once (token ids, uint8 pixels, floats), batched on demand."""

    def __len__(self) -> int: ...

    def batch(self, indices: npt.NDArray[np.int64]) -> dict[str, torch.Tensor]:
        """The model's keyword inputs for the samples at `indices`, in that order."""
        ...

    def lengths(self) -> npt.NDArray[np.int64]:
        """int64 [N]: the length of each sample's sequence; all ones where there is none."""
        ...

    def to_arrays(self, indices: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]]:
        """Those samples as compact arrays for the anchor file: padded int32 ids, uint8 pixels."""
        ...


class Encoder(Protocol):
    """Turns raw samples into a model's inputs, the same for training, eval and anchors."""

    @property
    def input_names(self) -> tuple[str, ...]: ...

    def encode(self, samples: Samples) -> EncodedInputs: ...

    def from_arrays(self, arrays: dict[str, npt.NDArray[Any]]) -> EncodedInputs:
        """The inverse of EncodedInputs.to_arrays."""
        ...


@dataclass(frozen=True)
class BaseHead:
    """The classifier that the base model brought along. weight: [C, d], bias: [C].

    has_bias: False for a Linear without one; `bias` is then zeros and has to stay so.
    """

    labels: tuple[str, ...]
    weight: torch.Tensor
    bias: torch.Tensor
    module_name: str  # dotted name of the Linear inside the base model
    has_bias: bool = True


class Backbone(nn.Module):
    """Maps a model's keyword inputs to features [N, d]. The user's module is `model`.

    Tensor names in a base file are the names inside `model`; target modules are named likewise.
    """

    model: nn.Module


@dataclass
class LoadedModel:
    """A base model, ready to be adapted: float32, eval mode, nothing requires a gradient."""

    backbone: Backbone
    encoder: Encoder
    feature_size: int
    source: ModelSource
    base_head: BaseHead | None = None
    dynamic_axes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    # input name -> names of its dynamic leading axes, e.g. {"input_ids": ("batch", "sequence")}
    file_names: dict[str, str] = field(default_factory=dict)
    # tensor name inside `backbone.model` -> its name in base/model.safetensors. They differ where
    # a Hugging Face file holds "bert.encoder..." for what the encoder alone calls "encoder..."
    file_dtype: str = "float32"  # of most float tensors in that file: float32, float16, bfloat16
    notes: tuple[str, ...] = ()  # choices that the user should hear of, one sentence each
