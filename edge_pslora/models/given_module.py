"""Base models handed over from Python: an nn.Module, or a function that returns one."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path

from torch import nn

from edge_pslora.data.types import Samples
from edge_pslora.errors import ModelError
from edge_pslora.models.factory import describe, rebuild, require_no_tokenizer
from edge_pslora.models.failures import FOREIGN_ERRORS, first_line
from edge_pslora.models.options import ModelOptions
from edge_pslora.models.types import GivenModule, LoadedModel, ModelSource
from edge_pslora.models.weights import write_weights
from edge_pslora.models.weights_header import WEIGHTS_FILE

WHERE = "model="


def import_given(
    given: GivenModule, samples: Samples, options: ModelOptions, base_dir: Path
) -> ModelSource:
    """Writes the weights of a copy of the module to base_dir and tries it on two samples.

    Raises:
        ModelError: the module or its fit to the data.
    """
    require_no_tokenizer(samples, WHERE)
    model = own_copy(given)
    write_weights(model, base_dir / WEIGHTS_FILE)
    name, structure = class_name(model), _structure(model)
    chosen = describe(model, WHERE, samples, options, base_dir)
    return ModelSource("object", samples.modality, name, chosen | {"structure": structure})


def load_given(source: ModelSource, base_dir: Path, given: GivenModule | None) -> LoadedModel:
    """The module of the earlier sessions, given anew, with the weights of base_dir.

    Raises:
        ModelError: it is not given, or is built of other layers.
    """
    remedy = "from Python, give model= the module of the first session, or what builds it"
    expected = f"a {source.reference} as in the first session"
    if given is None:
        raise ModelError(WHERE, expected=expected, found="none", remedy=remedy)
    model = own_copy(given)
    if _structure(model) != source.options["structure"]:
        found = f"a {class_name(model)} of other layers"
        raise ModelError(WHERE, expected=expected, found=found, remedy=remedy)
    return rebuild(model, WHERE, source, base_dir)


def own_copy(given: GivenModule) -> nn.Module:
    """A module that nobody else holds: the user's stays as it is.

    Raises:
        ModelError: it cannot be copied or built, or is something else.
    """
    try:
        model: object = given if isinstance(given, nn.Module) else given()
        model = copy.deepcopy(model)
    except FOREIGN_ERRORS as error:
        raise ModelError(
            WHERE,
            expected="a module that can be copied, or a function without arguments",
            found=first_line(error),
            remedy="give a function that builds the module",
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(
            WHERE,
            expected="a torch.nn.Module, or a function that returns one",
            found=type(model).__name__,
            remedy="give the module itself",
        )
    return model


def class_name(model: nn.Module) -> str:
    return f"{type(model).__module__}.{type(model).__qualname__}"


def _structure(model: nn.Module) -> str:
    """Names the layers and tensors: two modules with the same digest take the same weights."""
    modules = [(name, type(module).__qualname__) for name, module in model.named_modules()]
    tensors = [(name, list(tensor.shape)) for name, tensor in model.state_dict().items()]
    return hashlib.sha256(json.dumps([modules, tensors]).encode()).hexdigest()
