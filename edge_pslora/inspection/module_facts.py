"""Models that are no Hugging Face folder: a factory, the built-in networks, a file of weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edge_pslora.errors import ModelError
from edge_pslora.inspection.facts import LayerFacts, ModelFacts
from edge_pslora.inspection.file_layers import choose, file_layers
from edge_pslora.inspection.hf_facts import main_dtype, parameters
from edge_pslora.workspace.tensors import read_header

if TYPE_CHECKING:
    from torch import nn


def inspect_factory(
    reference: str, weights: Path | None, patterns: Sequence[str], rank: int
) -> ModelFacts:
    """Builds the module (this needs torch, and runs the user's code) and asks it for its layers.

    Raises:
        ModelError: it does not build, the weights do not fit, or --target names no layer.
    """
    from edge_pslora.models.user_module import build_module
    from edge_pslora.models.weights import freeze, load_into, read_weights

    module = freeze(build_module(reference))
    if weights is not None:
        load_into(module, read_weights(weights), f"--weights {weights}")
    side = getattr(module, "image_size", None)
    notes = () if weights is not None else ("The weights are as the factory makes them.",)
    return _module_facts(module, reference, "factory", side, patterns, rank, notes)


def inspect_exported(file: Path, patterns: Sequence[str], rank: int) -> ModelFacts:
    """A torch.export file (this needs torch).

    Raises:
        ModelError: it cannot be used, or --target names no layer.
    """
    from edge_pslora.models.exported import open_exported
    from edge_pslora.models.weights import freeze

    program, module, _ = open_exported(file)
    sizes = ["any" if size is None else str(size) for size in program.input_shape[1:]]
    side = program.input_shape[-1] if len(sizes) == 3 and sizes[0] == "3" else None
    note = f"One sample: float32 [{', '.join(sizes)}]. {len(program.steps)} operators."
    return _module_facts(freeze(module), str(file), "exported", side, patterns, rank, (note,))


def _module_facts(
    module: nn.Module,
    source: str,
    kind: str,
    side: object,
    patterns: Sequence[str],
    rank: int,
    notes: tuple[str, ...],
) -> ModelFacts:
    from edge_pslora.training.targets import find_targets

    family = type(module).__name__ if kind == "factory" else "torch.export file"
    targets = [
        LayerFacts(t.name, t.kind, t.weight_name, t.shape) for t in find_targets(module, patterns)
    ]
    state = module.state_dict().values()
    return ModelFacts(
        source=source,
        kind=kind,
        family=family,
        architecture=family,
        modality="image" if isinstance(side, int) else None,
        task="seen from the data",
        labels=(),
        head="a new one; if the module ends in its own Linear, that is cut off first",
        targets=tuple(targets),
        targets_certain=True,
        rank=rank,
        parameters=sum(tensor.numel() for tensor in state if tensor.is_floating_point()),
        dtype="F32",
        bytes=sum(tensor.numel() * tensor.element_size() for tensor in state),
        input_limit=side if isinstance(side, int) else None,
        notes=notes,
    )


def inspect_auto(rank: int) -> ModelFacts:
    """What --model auto stands for."""
    return ModelFacts(
        source="auto",
        kind="auto",
        family="built-in network",
        architecture="chosen by the first session's data, and fitted to it",
        modality=None,
        task="seen from the data",
        labels=(),
        head="a new one",
        targets=(),
        targets_certain=False,
        rank=rank,
        parameters=0,
        dtype="F32",
        bytes=0,
        input_limit=None,
        notes=(
            "Tables: two hidden layers of 64 or 128. Series and arrays: convolutions over time or space.",
            "Pictures: a small convolutional network. Texts: hashed words and an embedding.",
        ),
    )


def inspect_weights(path: Path, patterns: Sequence[str], rank: int) -> ModelFacts:
    """A safetensors file without a word about the network it belongs to.

    Raises:
        ModelError: damaged, or --target names no layer of it.
    """
    header = read_header(path, error=ModelError)
    layers = file_layers(header.specs)
    return ModelFacts(
        source=str(path),
        kind="weights",
        family="weights alone",
        architecture="unknown",
        modality=None,
        task="seen from the data",
        labels=(),
        head="a new one",
        targets=choose(layers, patterns) if layers else (),
        targets_certain=False,
        rank=rank,
        parameters=parameters(header.specs),
        dtype=main_dtype(header.specs),
        bytes=header.file_bytes,
        input_limit=None,
        notes=("To adapt it: --model package.module:factory --weights this file.",),
    )
