"""Base models from a torch.export file (.pt2): the network without its source."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from edge_pslora.data.types import Samples
from edge_pslora.errors import ModelError
from edge_pslora.models.factory import describe, rebuild
from edge_pslora.models.failures import FOREIGN_ERRORS, first_line
from edge_pslora.models.hf_folder import copy_input
from edge_pslora.models.options import ModelOptions
from edge_pslora.models.pt2_archive import Archive, bad, read_archive
from edge_pslora.models.pt2_module import ExportedNet, too_large
from edge_pslora.models.pt2_program import Program, parse_program
from edge_pslora.models.types import LoadedModel, ModelSource
from edge_pslora.models.weights import write_weights
from edge_pslora.models.weights_header import WEIGHTS_FILE

SUFFIX = ".pt2"
MAX_RESULT = 1 << 28
PROGRAM_FILE = "model.pt2"  # in base/
_ADAPTABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Embedding)


def import_exported(
    file: Path, samples: Samples, options: ModelOptions, base_dir: Path
) -> ModelSource:
    """Copies the file, writes its weights to base_dir and tries the network on two samples.

    Raises:
        ModelError: the file, its graph or its fit to the data.
    """
    where = f"--model {file}"
    if samples.modality in ("text", "audio"):
        raise ModelError(
            where,
            expected="images, tables or arrays: an exported network has no tokenizer",
            found=f"{samples.modality} data",
            remedy="use --model FOLDER (Hugging Face) or --model auto",
        )
    program, model, bare = open_exported(file)
    options = _fitting(program, samples, options, where)
    _require_bounded(program, model, samples, options, file)
    copy_input(file, base_dir / PROGRAM_FILE)
    write_weights(model, base_dir / WEIGHTS_FILE)
    chosen = describe(model, where, samples, options, base_dir, bare)
    return ModelSource("exported", samples.modality, file.name, chosen)


def load_exported(source: ModelSource, base_dir: Path) -> LoadedModel:
    """The network of an earlier session, with the weights of base_dir.

    Raises:
        ModelError: a file of base_dir is damaged.
    """
    _, model, _ = open_exported(base_dir / PROGRAM_FILE)
    return rebuild(model, f"--model {source.reference}", source, base_dir)


def open_exported(file: Path) -> tuple[Program, ExportedNet, ExportedNet]:
    """(the graph, its network, the same with bare operators in the place of layers).

    Raises:
        ModelError: not such a file, or no layer in it that an adapter could update.
    """
    archive = read_archive(file)
    program = parse_program(archive, file)
    model = _build(program, archive, file)
    if not any(isinstance(module, _ADAPTABLE) for module in model.modules()):
        raise bad(
            file,
            "a linear, conv2d or embedding operator that has a weight to itself",
            f"none among {len(program.steps)} operators",
            "export it with torch.export.export alone, without run_decompositions()",
        )
    return program, model, _build(program, archive, file, layers=False)


def _build(program: Program, archive: Archive, file: Path, *, layers: bool = True) -> ExportedNet:
    try:
        return ExportedNet(program, archive.tensors, layers=layers)
    except FOREIGN_ERRORS as error:
        raise bad(file, "a network of modules and parameters", first_line(error)) from error


def _fitting(program: Program, samples: Samples, options: ModelOptions, where: str) -> ModelOptions:
    """The options, with the picture's side that the graph was exported for.

    Raises:
        ModelError: samples of another shape than the graph takes.
    """
    wanted = program.input_shape[1:]
    if samples.modality == "image":
        size = options.image_size
        side = wanted[1] if len(wanted) == 3 else None
        if len(wanted) == 3 and size is None and side is not None:
            options = replace(options, image_size=side)
        shape: tuple[int, ...] = (3, *[options.image_size or side or 0] * 2)
        if len(wanted) == 3 and shape[1] == 0:
            remedy = "give --image-size"
            raise ModelError(where, expected="a size for pictures", found="none", remedy=remedy)
    else:
        shape = tuple(np.asarray(samples.inputs).shape[1:])
    fits = len(shape) == len(wanted) and all(
        w is None or w == n for w, n in zip(wanted, shape, strict=True)
    )
    if not fits:
        raise ModelError(
            where,
            expected=f"samples of shape {_text(wanted)}, which the file was exported for",
            found=_text(shape),
            remedy="reshape the data, or export the model for this shape",
        )
    return options


def _require_bounded(
    program: Program, model: ExportedNet, samples: Samples, options: ModelOptions, file: Path
) -> None:
    """No step asks for more numbers than a run of two samples may take."""
    side = options.image_size
    pictures = samples.modality == "image"
    shape = (3, side, side) if pictures else np.asarray(samples.inputs).shape[1:]
    found = too_large(model, torch.zeros(2, *shape), MAX_RESULT)
    if found is not None:
        raise bad(file, f"steps of at most {MAX_RESULT} numbers for two samples", found)


def _text(shape: tuple[int | None, ...]) -> str:
    return str(["any" if size is None else size for size in shape]).replace("'", "")
