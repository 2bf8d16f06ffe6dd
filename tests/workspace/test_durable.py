"""The durable writer: whole or not at all, fsync -> rename -> fsync of the folder, clear errors."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from edge_pslora.errors import EdgePsloraError, WorkspaceError
from edge_pslora.workspace import durable


@pytest.fixture
def log(monkeypatch):
    """(call, path) of every changing call, in order."""
    events: list[tuple[str, str]] = []

    def path_of(descriptor: int) -> str:
        return str(Path(f"/proc/self/fd/{descriptor}").readlink())

    def watch(name, describe):
        real = getattr(os, name)

        def call(*args, **kwargs):
            events.append((name, describe(*args)))
            return real(*args, **kwargs)

        monkeypatch.setattr(os, name, call)

    watch("write", lambda fd, data: path_of(fd))
    watch("fsync", path_of)
    watch("rename", lambda source, target, **_: str(target))
    return events


def test_order_of_a_written_file(tmp_path, log):
    durable.write_bytes(tmp_path / "f", b"data")
    assert [name for name, _ in log] == ["write", "fsync", "rename", "fsync"]
    temporary = log[0][1]
    assert log[1][1] == temporary
    assert Path(temporary).parent == tmp_path  # a rename across file systems would not be atomic
    assert log[2][1] == str(tmp_path / "f")
    assert log[3][1] == str(tmp_path)
    assert (tmp_path / "f").read_bytes() == b"data"
    assert os.listdir(tmp_path) == ["f"]  # noqa: PTH208


def test_order_of_a_published_folder(tmp_path, log):
    staged = tmp_path / "staging" / "one"
    (staged / "deep").mkdir(parents=True)
    files = [staged / "a", staged / "deep" / "b"]
    for path in files:
        path.write_bytes(b"x")
    final = tmp_path / "final"
    final.mkdir()
    durable.publish_folder(staged, final / "one")
    at = [name for name, _ in log].index("rename")
    before = [path for _, path in log[:at]]
    assert {str(path) for path in [*files, staged, staged / "deep"]} == set(before)
    assert before.index(str(staged / "deep")) < before.index(str(staged))
    assert log[at + 1 :] == [("fsync", str(final)), ("fsync", str(staged.parent))]
    assert (final / "one" / "deep" / "b").read_bytes() == b"x"


def test_each_new_folder_is_named_before_the_next_is_made(tmp_path, log):
    made = durable.make_folders(tmp_path / "a" / "b")
    assert made == [tmp_path / "a", tmp_path / "a" / "b"]
    assert log == [("fsync", str(tmp_path)), ("fsync", str(tmp_path / "a"))]
    assert durable.make_folders(tmp_path / "a" / "b") == []


def test_a_folder_that_is_there_is_named_durably_too(tmp_path, log):
    """Who made it may have been killed before it came to that."""
    (tmp_path / "updates").mkdir()
    durable.make_folder(tmp_path / "updates")
    assert log == [("fsync", str(tmp_path))]


def test_the_names_of_all_parents_can_be_made_durable(tmp_path, log):
    (tmp_path / "a" / "b").mkdir(parents=True)
    durable.sync_parents(tmp_path / "a" / "b")
    synced = [path for _, path in log]
    assert synced[:3] == [str(tmp_path / "a"), str(tmp_path), str(tmp_path.parent)]
    assert {name for name, _ in log} == {"fsync"}


def test_publish_refuses_an_existing_target_and_links(tmp_path):
    (tmp_path / "staged").mkdir()
    (tmp_path / "final").mkdir()
    with pytest.raises(EdgePsloraError, match="exists already"):
        durable.publish_folder(tmp_path / "staged", tmp_path / "final")
    (tmp_path / "staged" / "link").symlink_to("/etc/passwd")
    with pytest.raises(EdgePsloraError, match="a link, pipe or device"):
        durable.publish_folder(tmp_path / "staged", tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
def test_a_failed_call_leaves_the_old_file_and_no_leftovers(tmp_path, monkeypatch, call, code):
    durable.write_bytes(tmp_path / "f", b"old")
    calls = []

    def fail(*args, **kwargs):
        calls.append(call)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(EdgePsloraError) as caught:
        durable.write_bytes(tmp_path / "f", b"new")
    monkeypatch.undo()
    assert calls == [call]  # never tried twice, fsync least of all
    assert str(tmp_path) in str(caught.value)
    assert os.strerror(code) in str(caught.value)
    if code == errno.ENOSPC:
        assert "free some space" in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"f"}
    assert (tmp_path / "f").read_bytes() == b"old"


def test_interrupted_by_the_keyboard_leaves_nothing(tmp_path):
    def half_a_file():
        with durable.new_file(tmp_path / "f") as write:
            write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half_a_file()
    assert list(tmp_path.iterdir()) == []


def test_short_writes_are_continued(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data[:3])))
    durable.write_bytes(tmp_path / "f", bytes(range(100)))
    monkeypatch.undo()
    assert (tmp_path / "f").read_bytes() == bytes(range(100))


def test_copy_is_exact_and_needs_a_regular_file(tmp_path, monkeypatch):
    monkeypatch.setattr(durable, "_COPY_CHUNK", 1000)
    data = os.urandom(4567)
    (tmp_path / "a").write_bytes(data)
    durable.copy_file(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == data
    os.mkfifo(tmp_path / "pipe")
    for name, found in {"pipe": "a folder, pipe", "none": "No such file", ".": "a folder"}.items():
        with pytest.raises(WorkspaceError, match=found):
            durable.copy_file(tmp_path / name, tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_leftovers_of_dead_processes_go_and_those_of_live_ones_stay(tmp_path):
    dead = tmp_path / ".out.999999999.0123abcd.tmp"
    same = tmp_path / f".out.{os.getpid()}.0123abcd.tmp"  # of an earlier process with our number
    live = tmp_path / f".out.{os.getppid()}.0123abcd.tmp"
    other = tmp_path / ".mine.tmp"
    for path in (dead, same, live, other):
        path.write_bytes(b"")
    durable.remove_leftovers(tmp_path, "out")
    assert set(tmp_path.iterdir()) == {live, other}


def test_free_space_is_asked_of_the_nearest_folder(tmp_path):
    durable.require_free_space(tmp_path / "not" / "there", 1)
    with pytest.raises(EdgePsloraError, match=f"{tmp_path}: expected {2**60} bytes free"):
        durable.require_free_space(tmp_path / "not" / "there", 2**60)


def test_removal_takes_the_name_away_in_one_step(tmp_path, log):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "a").write_bytes(b"")
    durable.remove_folder(folder, tmp_path / "trash")
    assert list(tmp_path.iterdir()) == []
    assert "rename" in [name for name, _ in log]


def test_a_second_name_replaces_a_file_and_is_durable(tmp_path, log):
    (tmp_path / "new").write_bytes(b"new")
    (tmp_path / "name").write_bytes(b"old")
    durable.link_file(tmp_path / "new", tmp_path / "name")
    assert (tmp_path / "name").samefile(tmp_path / "new")
    assert [name for name, _ in log] == ["rename", "fsync"]
    durable.link_file(tmp_path / "new", tmp_path / "name")  # again: nothing is left of it
    durable.remove_file(tmp_path / "new")
    assert log[-1] == ("fsync", str(tmp_path))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"name": b"new"}


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK])
def test_a_copy_where_the_disk_has_no_links(tmp_path, monkeypatch, code):
    def fail(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", fail)
    (tmp_path / "new").write_bytes(b"new")
    durable.link_file(tmp_path / "new", tmp_path / "name")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"name": b"new", "new": b"new"}
    assert not (tmp_path / "name").samefile(tmp_path / "new")


def test_an_fsync_that_fails_meanwhile_is_an_error(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    reached = []

    def write() -> None:
        with durable.new_file(tmp_path / "f") as append:
            append(b"data")
            monkeypatch.setattr(os, "fsync", fail)
            with append.syncing():
                reached.append(os.pread(append.descriptor, 4, 0))
            reached.append(b"never")

    with pytest.raises(EdgePsloraError, match="Input/output error"):
        write()
    assert reached == [b"data"]
    assert list(tmp_path.iterdir()) == []
