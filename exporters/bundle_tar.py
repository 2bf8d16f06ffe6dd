"""A bundle's folder as one uncompressed tar file, read in place by devices; the same bytes each time."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from edge_pslora.errors import BundleError
from edge_pslora.signing import metadata as form
from edge_pslora.signing.repository import read_repository, target_path
from edge_pslora.workspace import durable
from edge_pslora.workspace.durable import Append
from edge_pslora.workspace.reading import open_regular


def write_tar(folder: Path) -> Path:
    """Write FOLDER.tar beside the folder; the caller holds its lock.

    In it is what devices take, no release that waits for signatures. Names, modes and times are set,
    so that equal bundles are equal files.

    Raises:
        BundleError: nothing was released yet.
    """
    found = read_repository(folder)
    release = found.current
    if release is None:
        raise BundleError(
            str(folder),
            expected="a release with all its signatures",
            found="none yet",
            remedy="add the missing ones: edge-pslora keys sign BUNDLE --key FILE",
        )
    place = folder / form.METADATA
    paths = [place / form.root_name(root.signed.version) for root in found.roots]
    paths += [
        place / form.TIMESTAMP_FILE,
        place / form.snapshot_name(release.snapshot.signed.version),
        place / form.targets_name(release.targets.signed.version),
    ]
    targets = [target_path(folder, name, digest) for name, digest in release.files.items()]
    out = folder.with_name(f"{folder.name}.tar")
    durable.remove_leftovers(out.parent, out.name)
    with (
        durable.new_file(out) as append,
        tarfile.open(
            fileobj=cast(IO[bytes], _Sink(append)), mode="w|", format=tarfile.PAX_FORMAT
        ) as tar,
    ):
        for path in [*paths, *sorted(targets)]:  # what is checked first comes first
            _add(tar, path, path.relative_to(folder).as_posix())
    return out


@dataclass(frozen=True)
class _Sink:
    """What tarfile writes to."""

    append: Append

    def write(self, data: bytes) -> int:
        self.append(data)
        return len(data)


def _add(tar: tarfile.TarFile, path: Path, name: str) -> None:
    with open_regular(path, error=BundleError) as (descriptor, size):
        entry = tarfile.TarInfo(name)  # mode 0644, owner 0, time 0
        entry.size = size
        with open(descriptor, "rb", closefd=False) as file:
            tar.addfile(entry, file)
