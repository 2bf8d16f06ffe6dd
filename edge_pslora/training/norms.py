"""Normalisation layers, found by class or by name: RMSNorms are written anew in every family."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

_KNOWN = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, _NormBase)


def is_norm(module: nn.Module) -> bool:
    """torch's own, and classes without children that are called a norm and have vectors only.

    LlamaRMSNorm, DebertaLayerNorm and T5LayerNorm derive from nn.Module alone.
    """
    if isinstance(module, _KNOWN):
        return True
    parameters = dict(module.named_parameters(recurse=False))
    return (
        "norm" in type(module).__name__.lower()
        and not any(True for _ in module.children())
        and bool(parameters)
        and all(parameter.dim() == 1 for parameter in parameters.values())
    )


def norm_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Scales and shifts of every normalisation layer, by their names in the model."""
    return {
        f"{name}.{part}" if name else part: parameter
        for name, module in model.named_modules()
        if is_norm(module)
        for part, parameter in module.named_parameters(recurse=False)
    }
