"""From `--model SRC` to a frozen base folder, and from there to a loaded model."""

from __future__ import annotations

from pathlib import Path

from edge_pslora.data.types import Samples
from edge_pslora.errors import ModelError, UsageError
from edge_pslora.models.auto import import_auto, load_auto
from edge_pslora.models.exported import SUFFIX, import_exported, load_exported
from edge_pslora.models.factory import import_factory, load_factory
from edge_pslora.models.fit import seeded
from edge_pslora.models.given_module import import_given, load_given
from edge_pslora.models.huggingface import import_folder, load_folder
from edge_pslora.models.options import ModelOptions
from edge_pslora.models.types import GivenModule, LoadedModel, ModelArgument, ModelSource
from edge_pslora.models.user_module import is_reference

__all__ = ["ModelOptions", "import_base", "load_model"]

_KINDS = "a Hugging Face folder, package.module:factory, a .pt2 file, or auto"


def import_base(
    model_argument: ModelArgument,
    weights: Path | None,
    samples: Samples,
    options: ModelOptions,
    base_dir: Path,
) -> ModelSource:
    """Resolves `--model`, tries the model on the samples and writes its files into base_dir.

    base_dir: an existing empty folder; the caller makes it durable. For "auto" the network is
    fitted to the samples.

    Raises:
        ModelError: no such model, or one that does not fit the samples.
        UsageError: `--weights` with a model that brings its own.
    """
    if not isinstance(model_argument, str):
        if weights is not None:
            raise UsageError(
                "weights",
                expected="a module that brings its own weights",
                found=f"model= a module and weights={weights}",
                remedy="load them into the module, or name its factory as package.module:factory",
            )
        with seeded(options.seed):
            return import_given(model_argument, samples, options, base_dir)
    is_factory = is_reference(model_argument) and not Path(model_argument).is_dir()
    is_exported = Path(model_argument).suffix == SUFFIX and Path(model_argument).is_file()
    if weights is not None and not is_factory:
        raise UsageError(
            "--weights",
            expected="--model package.module:factory beside it",
            found=f"--model {model_argument}, which brings its own weights",
            remedy="leave --weights out",
        )
    if options.head_module is not None and not (is_factory or is_exported):
        raise UsageError(
            "head module",
            expected="--model package.module:factory or a .pt2 file beside it",
            found=f"--model {model_argument}, whose head is found by itself",
            remedy="leave the option out",
        )
    folder = Path(model_argument)
    # a factory's own initialisation is reproducible too, and the caller's generator unmoved
    with seeded(options.seed):
        if model_argument == "auto":
            return import_auto(samples, options, base_dir)
        if is_factory:
            return import_factory(model_argument, weights, samples, options, base_dir)
        if is_exported:
            return import_exported(folder, samples, options, base_dir)
        if folder.is_dir():
            return import_folder(folder, samples, options, base_dir)
    raise ModelError(
        f"--model {model_argument}",
        expected=_KINDS,
        found="a file" if folder.exists() else "no such folder",
        remedy="give the folder that holds the model"
        if folder.exists()
        else "check the path; nothing is downloaded, a model of the hub must be on disk",
    )


def load_model(
    source: ModelSource, base_dir: Path, given: GivenModule | None = None
) -> LoadedModel:
    """The base model of a workspace, the same in every session: float32, eval mode, frozen.

    given: the module, for a workspace whose model was handed over from Python.

    Raises:
        ModelError: base_dir is damaged, or what the source names is no longer there.
    """
    with seeded(0):  # whatever a constructor draws is overwritten by the weights
        if source.kind == "huggingface":
            return load_folder(source, base_dir)
        if source.kind == "factory":
            return load_factory(source, base_dir)
        if source.kind == "exported":
            return load_exported(source, base_dir)
        if source.kind == "object":
            return load_given(source, base_dir, given)
        return load_auto(source, base_dir)
