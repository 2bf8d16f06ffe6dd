"""`edge-pslora keys`: who may sign updates, and signatures that are added later."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge_pslora.cli import options as o
from edge_pslora.cli import signing_options as s
from edge_pslora.cli.output import columns, print_result
from edge_pslora.errors import UsageError
from edge_pslora.units import parse_duration

if TYPE_CHECKING:
    from edge_pslora.signing.release import Standing

app = typer.Typer(
    help="Keys that sign updates: make them, sign with them, replace them.", no_args_is_help=False
)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="New folder for the keys.")]
Count = Annotated[int, typer.Option(metavar="N", min=1, help="How many keys.")]
Threshold = Annotated[int, typer.Option(metavar="K", min=1, help="How many of them have to sign.")]
NewThreshold = Annotated[
    int | None,
    typer.Option(
        "--threshold", metavar="K", min=1, help="How many have to sign. Default: as before."
    ),
]
RootExpires = Annotated[
    str,
    typer.Option(
        "--expires", metavar="TIME", help="How long devices trust these keys, such as 365d."
    ),
]
Renew = Annotated[
    str | None,
    typer.Option(
        "--expires",
        metavar="TIME",
        help="Release the same files once more, to be valid for that long from now on.",
    ),
]
Remove = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY", help="Id of a key to trust no more, or its .pub file."),
]
Add = Annotated[
    list[Path] | None, typer.Option(metavar="FILE", help=".pub file of a key to trust.")
]


@app.command()
def init(
    folder: Folder,
    count: Count = 3,
    threshold: Threshold = 2,
    expires: RootExpires = "365d",
    passphrase_file: s.PassphraseFile = None,
    as_json: o.AsJson = False,
    debug: o.Debug = False,
) -> None:
    """Make keys for signed updates, and the root.json that devices trust.

    Give each private key to another holder, and root.json to the devices.
    """
    _require_signing()
    from edge_pslora.signing.keys import make_keys, read_passphrase

    passphrase = None if passphrase_file is None else read_passphrase(passphrase_file)
    made = make_keys(folder, count, threshold, _in(expires), passphrase)
    facts = {
        "folder": str(made.folder),
        "root": str(made.root),
        "keys": [{"file": str(f), "id": i} for f, i in zip(made.files, made.ids, strict=True)],
        "threshold": made.threshold,
        "expires": f"{made.expires:%Y-%m-%dT%H:%M:%SZ}",
    }
    rows = [(path.name, key_id) for path, key_id in zip(made.files, made.ids, strict=True)]
    rows.append((made.root.name, f"{threshold} of {count} sign; until {made.expires:%Y-%m-%d}"))
    lines = [
        f"Keys in {folder}, for their holders alone:",
        *columns(rows),
        f"Devices get {made.root.name}; who holds {threshold} of the keys can sign for all of them.",
    ]
    print_result(facts, lines, as_json=as_json)


@app.command()
def sign(
    bundle: s.BundleArgument,
    key: s.Keys,
    passphrase_file: s.PassphraseFile = None,
    expires: Renew = None,
    tar: s.Tar = False,
    as_json: o.AsJson = False,
    debug: o.Debug = False,
) -> None:
    """Add signatures to a bundle, or release it once more with a later expiry."""
    _require_signing()
    from edge_pslora.exporters.export_bundle import described, require_past
    from edge_pslora.signing import release
    from edge_pslora.signing.repository import read_repository
    from edge_pslora.workspace.lock import folder_lock

    signers = s.signers_of(key, passphrase_file)
    with folder_lock(bundle):
        found = read_repository(bundle)
        if found.newest is not None:
            require_past(described(bundle, found.newest), bundle, datetime.now(UTC))
        if expires is None:
            standing = release.add_signatures(found, signers)
        else:
            standing = release.renew(found, _in(expires), signers)
        _report(bundle, standing, tar=tar, as_json=as_json)


@app.command()
def show(bundle: s.BundleArgument, as_json: o.AsJson = False, debug: o.Debug = False) -> None:
    """Show what a bundle is, whose signatures it has and what it lacks: look before you sign."""
    _require_signing()
    from edge_pslora.signing.release import standing
    from edge_pslora.signing.repository import read_repository

    _report(bundle, standing(read_repository(bundle)), tar=False, as_json=as_json)


@app.command()
def rotate(
    bundle: s.BundleArgument,
    key: s.Keys,
    remove: Remove = None,
    add: Add = None,
    threshold: NewThreshold = None,
    expires: RootExpires = "365d",
    passphrase_file: s.PassphraseFile = None,
    tar: s.Tar = False,
    as_json: o.AsJson = False,
    debug: o.Debug = False,
) -> None:
    """Trust other keys from now on. Enough of the old keys and of the new ones have to sign.

    Devices learn of it with the next bundle that they read from this folder.
    """
    _require_signing()
    from edge_pslora.signing import release, roles
    from edge_pslora.signing.keys import load_public
    from edge_pslora.signing.repository import read_repository
    from edge_pslora.workspace.lock import folder_lock

    signers = s.signers_of(key, passphrase_file)
    with folder_lock(bundle):
        found = read_repository(bundle)
        removed = [
            load_public(Path(one)).keyid if Path(one).is_file() else roles.find_key(found.root, one)
            for one in remove or ()
        ]
        standing = release.rotate(
            found,
            remove=removed,
            add=[load_public(path) for path in add or ()],
            expires=_in(expires),
            signers=signers,
            threshold=threshold,
        )
        _report(bundle, standing, tar=tar, as_json=as_json)


def _report(bundle: Path, standing: Standing, *, tar: bool, as_json: bool) -> None:
    """What the bundle is, whose signatures it has; the tar file is written where none are missing."""
    from edge_pslora.exporters.bundle_tar import write_tar
    from edge_pslora.exporters.export_bundle import described
    from edge_pslora.signing.repository import read_repository

    newest = read_repository(bundle).newest
    rows: list[tuple[str, str]] = []
    facts: dict[str, object] = {"bundle": str(bundle)}
    if newest is not None:
        content = described(bundle, newest)
        classes = ", ".join(content.device_classes)
        rows += [
            ("bundle", f"{content.kind}, generation {content.manifest.number}, for {classes}"),
            ("counter", f"{content.counter}, made {content.signed_at:%Y-%m-%d %H:%M} UTC"),
        ]
        facts |= {
            "kind": content.kind,
            "generation": content.manifest.number,
            "counter": content.counter,
            "device_classes": list(content.device_classes),
        }
    written = write_tar(bundle.absolute()) if tar and not standing.missing else None
    facts |= standing.to_dict() | {"tar": None if written is None else str(written)}
    lines = [str(bundle), *columns([*rows, *s.standing_rows(standing)])]
    lines += [str(written)] if written is not None else []
    print_result(facts, [*lines, s.standing_line(standing, bundle)], as_json=as_json)


def _in(text: str) -> datetime:
    """That long from now on."""
    seconds = parse_duration(text, "--expires")
    if seconds < 1:
        raise UsageError(
            "--expires", expected="a time to come", found=text, remedy="give one such as 30d"
        )
    return datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=seconds)


def _require_signing() -> None:
    from edge_pslora.signing.extra import require_signing

    require_signing()
