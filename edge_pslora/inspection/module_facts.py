"""Models that are no Hugging Face folder: a factory, the built-in networks, a file of weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edge_pslora.errors import ModelError
from edge_pslora.inspection.facts import LayerFacts, ModelFacts
from edge_pslora.inspection.file_layers import choose, file_layers
from edge_pslora.inspection.hf_facts import main_dtype, parameters
from edge_pslora.workspace.tensors import read_header


def inspect_factory(
    reference: str, weights: Path | None, patterns: Sequence[str], rank: int
) -> ModelFacts:
    """Builds the module (this needs torch, and runs the user's code) and asks it for its layers.

    Raises:
        ModelError: it does not build, the weights do not fit, or --target names no layer.
    """
    from edge_pslora.models.user_module import build_module
    from edge_pslora.models.weights import freeze, load_into, read_weights
    from edge_pslora.training.targets import find_targets

    module = freeze(build_module(reference))
    if weights is not None:
        load_into(module, read_weights(weights), f"--weights {weights}")
    targets = [
        LayerFacts(t.name, t.kind, t.weight_name, t.shape) for t in find_targets(module, patterns)
    ]
    state = module.state_dict().values()
    side = getattr(module, "image_size", None)
    return ModelFacts(
        source=reference,
        kind="factory",
        family=type(module).__name__,
        architecture=type(module).__name__,
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
        notes=() if weights is not None else ("The weights are as the factory makes them.",),
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
