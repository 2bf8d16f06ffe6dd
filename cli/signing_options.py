"""Options that the commands of signed updates share, and how far a bundle is signed, in words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from securesystemslib.signer import CryptoSigner

    from edge_pslora.signing.release import Standing

KEYS = "Keys"

BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of the bundle.")]
Keys = Annotated[
    list[Path],
    typer.Option(
        "--key",
        metavar="FILE",
        help="Private key to sign with; may be given more than once.",
        rich_help_panel=KEYS,
    ),
]
PassphraseFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="File with the passphrase of the keys.", rich_help_panel=KEYS
    ),
]
Tar = Annotated[
    bool, typer.Option("--tar", help="Write the bundle as one file beside its folder as well.")
]


def signers_of(keys: list[Path], passphrase_file: Path | None) -> list[CryptoSigner]:
    """The keys of --key, opened."""
    from edge_pslora.signing.keys import load_signers, read_passphrase

    passphrase = None if passphrase_file is None else read_passphrase(passphrase_file)
    return load_signers(keys, passphrase)


def standing_rows(standing: Standing) -> list[tuple[str, str]]:
    """Names and values for output.columns."""
    signed = ", ".join(key_id[:12] for key_id in standing.signed) or "nobody"
    rows = [
        ("signed by", f"{signed}; {standing.threshold} are needed"),
        ("root", f"version {standing.root}"),
    ]
    if standing.expires is not None:
        rows.append(("expires", f"{standing.expires:%Y-%m-%d %H:%M} UTC"))
    return rows


def standing_line(standing: Standing, bundle: Path | str) -> str:
    """What is to be done next."""
    if standing.missing:
        more = f"{standing.missing} more signature{'s' if standing.missing > 1 else ''}"
        before = "nothing" if standing.release == 0 else f"release {standing.release}, as before"
        return f"Devices take {before}; {more} needed: edge-pslora keys sign {bundle} --key FILE"
    return f"Devices take release {standing.release}."
