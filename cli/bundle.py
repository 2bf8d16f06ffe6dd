"""`edge-pslora bundle`: a generation as a signed update."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from edge_pslora.cli import options as o
from edge_pslora.cli import signing_options as s
from edge_pslora.cli.output import columns, print_result
from edge_pslora.units import format_size, parse_duration

OutArgument = Annotated[
    Path,
    typer.Argument(metavar="OUT", help="Folder of the bundle: a new one, or one to go on with."),
]
Root = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="root.json of `keys init`, or another bundle to take over the roots of; for a new bundle.",
        rich_help_panel=s.KEYS,
    ),
]
Kind = Annotated[
    Literal["auto", "full", "delta"],
    typer.Option(
        "--kind",
        metavar="KIND",
        help="full; delta (for devices that have the generation before); auto (what is smaller).",
    ),
]
DeviceClass = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME", help="Devices of that class take it; may be given more than once."
    ),
]
Counter = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="Devices never take a smaller one. Default: the next."),
]
Expires = Annotated[
    str, typer.Option(metavar="TIME", help="How long devices take it, such as 30d.")
]
Learn = Annotated[
    bool,
    typer.Option(
        "--learn",
        help="Ship what further sessions need, too: adapter, history, head, and the anchor set, which "
        "holds samples.",
    ),
]
WithBase = Annotated[
    bool, typer.Option("--with-base", help="Ship the base, for devices without a workspace.")
]


def bundle(
    workspace: o.WorkspaceArgument,
    out: OutArgument,
    key: s.Keys,
    root: Root = None,
    kind: Kind = "auto",
    generation: o.GenerationOption = None,
    device_class: DeviceClass = None,
    counter: Counter = None,
    expires: Expires = "30d",
    learn: Learn = False,
    with_base: WithBase = False,
    tar: s.Tar = False,
    passphrase_file: s.PassphraseFile = None,
    as_json: o.AsJson = False,
    debug: o.Debug = False,
) -> None:
    """Make a signed update of a generation, whole or as a delta.

    Devices take it once enough keys have signed: with --key here, or later with `keys sign`.
    """
    from edge_pslora.signing.extra import require_signing

    require_signing()
    from edge_pslora.exporters.export_bundle import BundleOptions, export_bundle
    from edge_pslora.update.bundle import DEFAULT_DEVICE_CLASS

    options = BundleOptions(
        kind=kind,
        device_classes=tuple(device_class or (DEFAULT_DEVICE_CLASS,)),
        counter=counter,
        expires=parse_duration(expires, "--expires"),
        learn=learn,
        with_base=with_base,
        tar=tar,
    )
    signers = s.signers_of(key, passphrase_file)
    result = export_bundle(workspace, out, signers, options, root=root, generation=generation)
    rows = [
        ("bundle", f"{result.kind}, generation {result.generation}, counter {result.counter}"),
        ("for", ", ".join(result.device_classes)),
        ("size", f"{format_size(result.bytes)}: {', '.join(result.files)}"),
        *s.standing_rows(result.standing),
    ]
    lines = [str(out), *([] if result.tar is None else [result.tar]), *columns(rows)]
    lines += [*result.notes, s.standing_line(result.standing, out)]
    print_result(result.to_dict(), lines, as_json=as_json)
