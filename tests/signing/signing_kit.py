"""Bundles without models, and what python-tuf's own client makes of a bundle's folder."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import FetcherInterface, Updater

from edge_pslora.signing import release
from edge_pslora.signing.keys import NewKeys, load_signers, make_keys
from edge_pslora.signing.release import Standing
from edge_pslora.workspace.durable import make_folder
from edge_pslora.workspace.lock import folder_lock
from edge_pslora.workspace.reading import digest_bytes

DAY = timedelta(days=1)


def soon(days: float = 30) -> datetime:
    return datetime.now(UTC).replace(microsecond=0) + timedelta(days=days)


def keys_in(folder: Path, count: int = 3, threshold: int = 2) -> tuple[NewKeys, list[CryptoSigner]]:
    made = make_keys(folder, count, threshold, soon(365))
    return made, load_signers(made.files)


def publish(
    folder: Path,
    contents: dict[str, bytes],
    signers: list[CryptoSigner],
    root: Path | None = None,
    days: float = 30,
    now: datetime | None = None,
) -> Standing:
    """A release of files with these contents."""
    make_folder(folder)
    with folder_lock(folder):
        found = release.begin(folder, root)
        digests = {name: digest_bytes(data) for name, data in contents.items()}
        for name, data in contents.items():
            release.put_bytes(folder, name, data, digests[name])
        return release.add_release(found, digests, soon(days), signers, now)


class FolderFetcher(FetcherInterface):
    """A folder as if it were on a server."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _fetch(self, url: str) -> Iterator[bytes]:
        path = self._folder / url.removeprefix("bundle:/")
        if not path.is_file():
            raise DownloadHTTPError(f"no {path.name}", 404)
        return iter([path.read_bytes()])


def taken(folder: Path, root: bytes, names: list[str]) -> dict[str, bytes | None]:
    """What a new device that trusts `root` takes from a bundle's folder; None: not a target.

    Raises whatever python-tuf does.
    """
    with tempfile.TemporaryDirectory() as place:
        updater = Updater(
            place,
            "bundle:/metadata",
            target_dir=place,
            target_base_url="bundle:/targets",
            fetcher=FolderFetcher(folder),
            bootstrap=root,
        )
        found = {name: updater.get_targetinfo(name) for name in names}
        return {
            name: None if info is None else Path(updater.download_target(info)).read_bytes()
            for name, info in found.items()
        }


def files_of(folder: Path) -> dict[str, bytes]:
    """Relative name -> content of every file below a folder."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
