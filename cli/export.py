"""`edge-pslora export`: a generation in the form that somebody else can use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edge_pslora.cli import options as o
from edge_pslora.cli.loading import heavy_imports
from edge_pslora.cli.output import print_result
from edge_pslora.cli.quiet import working
from edge_pslora.errors import UsageError
from edge_pslora.exporters.export_options import (
    DEFAULT_DROP,
    DEFAULT_RANK,
    OPSETS,
    ExportOptions,
    Format,
    Quantization,
)

FILES = "Files"
OutArgument = Annotated[
    Path | None, typer.Argument(metavar="OUT", help="Folder to write to; not with --patch.")
]
FormatOption = Annotated[
    Format | None,
    typer.Option(
        "--format",
        metavar="KIND",
        help="onnx; safetensors (the merged weights); peft (the adapter); ort-adapter (an ONNX file that "
        "takes adapters, and the adapter); delta (the smallest update, for `edge-pslora replay`).",
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace an earlier export in that folder.")
]
Patch = Annotated[
    Path | None,
    typer.Option(
        "--patch",
        metavar="FILE",
        help="In place of OUT: an earlier export's model.onnx, which gets the generation's weights.",
        rich_help_panel=FILES,
    ),
]
MaxRank = Annotated[
    int,
    typer.Option(
        metavar="R",
        min=1,
        help="Largest rank of a layer, for peft and ort-adapter.",
        rich_help_panel=FILES,
    ),
]
Opset = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help=f"Of the ONNX file: {OPSETS[0]} to {OPSETS[-1]}. Default: as published, 18.",
        rich_help_panel=FILES,
    ),
]
ExternalData = Annotated[
    bool,
    typer.Option(
        "--external-data",
        help="Weights in model.onnx_data. Default: only above 1.5 GB.",
        rich_help_panel=FILES,
    ),
]
FreeImageSize = Annotated[
    bool,
    typer.Option(
        "--free-image-size",
        help="An ONNX file that takes pictures of any height and width, where the model does.",
        rich_help_panel=FILES,
    ),
]
KvCache = Annotated[
    bool,
    typer.Option(
        "--kv-cache",
        help="A language model that takes its keys and values of earlier tokens, and gives them back.",
        rich_help_panel=FILES,
    ),
]
Quantize = Annotated[
    Quantization | None,
    typer.Option(
        metavar="KIND",
        help="int8, or int8-static (calibrated on the samples). Refused when it costs too much.",
        rich_help_panel=FILES,
    ),
]
MaxDrop = Annotated[
    float,
    typer.Option(
        metavar="FRACTION",
        help="What quantising, or the rank of an ort-adapter, may cost; 0.01 = one point.",
        rich_help_panel=FILES,
    ),
]
Generations = Annotated[
    int,
    typer.Option(
        metavar="K",
        min=1,
        help="How many generations ort-adapter holds: the chosen one and those before.",
        rich_help_panel=FILES,
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        metavar="DATA",
        help="Samples to prove, measure and calibrate with. Default: those the workspace keeps.",
        rich_help_panel=FILES,
    ),
]


def export(
    workspace: o.WorkspaceArgument,
    out: OutArgument = None,
    format: FormatOption = None,
    generation: o.GenerationOption = None,
    max_rank: MaxRank = DEFAULT_RANK,
    opset: Opset = None,
    external_data: ExternalData = False,
    free_image_size: FreeImageSize = False,
    kv_cache: KvCache = False,
    quantize: Quantize = None,
    max_drop: MaxDrop = DEFAULT_DROP,
    generations: Generations = 1,
    data: Data = None,
    patch: Patch = None,
    overwrite: Overwrite = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Write a generation in the form that others use, and prove it."""
    place = _place(out, format, patch, overwrite=overwrite, data=data)
    options = ExportOptions(
        format=format or "onnx",
        max_rank=max_rank,
        opset=opset,
        external_data=external_data,
        kv_cache=kv_cache,
        quantize=quantize,
        max_drop=max_drop,
        free_image_size=free_image_size,
        generations=generations,
        patch=patch,
    )
    with working(quiet=quiet, debug=debug):
        # Torch and onnx are imported here and not above: --help has to start fast.
        if patch is not None:
            from edge_pslora.exporters.export_patch import patch_export

            result = patch_export(workspace, place, generation=generation)
        elif options.needs_model:
            with heavy_imports():
                from edge_pslora.pipeline.exporting import export_with_model

            result = export_with_model(
                workspace, place, options, generation=generation, overwrite=overwrite, data=data
            )
        else:
            from edge_pslora.exporters.export import export_generation

            result = export_generation(
                workspace, place, options, generation=generation, overwrite=overwrite
            )
    lines = [
        f"Generation {result.generation} as {result.format}:",
        *(f"  {f}" for f in result.files),
    ]
    print_result(result.to_dict(), [*lines, *result.notes], as_json=as_json)


def _place(
    out: Path | None,
    format: Format | None,
    patch: Path | None,
    *,
    overwrite: bool,
    data: Path | None,
) -> Path:
    """What is written to: OUT, which needs --format, or the FILE of --patch, which excludes others."""
    if out is not None and format is not None and patch is None:
        return out
    if patch is not None and out is None and data is None and not overwrite:
        return patch
    given = {"OUT": out, "--format": format, "--patch": patch, "--data": data}
    names = [name for name, value in given.items() if value is not None]
    raise UsageError(
        "export",
        expected="OUT and --format KIND, or --patch FILE without OUT, --data and --overwrite",
        found=", ".join([*names, *(["--overwrite"] if overwrite else [])]) or "neither",
        remedy="see edge-pslora export --help",
    )
