"""The model of a disk: what may be found after a power loss, and what may not."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tests.torture.disk import Disk, File, Resize, Write, after, contents, zeros
from tests.torture.tracer import Call


def call(name: str, path: str, **more) -> Call:
    return Call(1, name, f"/r/{path}".rstrip("/"), result=0, **more)


def write(path: str, data: bytes, offset: int = 0) -> Call:
    return replace(call("write", path, offset=offset, data=data), result=len(data))


def rename(old: str, new: str) -> Call:
    return call("rename", old, target=f"/r/{new}")


def found(disk: Disk) -> list[dict]:
    trees = []
    for tree in disk.crashes(random.Random(0), 20):
        if tree not in trees:
            trees.append(tree)
    return trees


def after_all(tree: dict, *calls: Call) -> Disk:
    disk = Disk("/r", tree)
    for one in calls:
        disk.apply(one)
    return disk


def test_changes_of_a_file():
    assert after(b"abc", [Write(5, b"x")]) == b"abc\0\0x"
    assert after(b"abc", [Resize(1), Resize(3)]) == b"a\0\0"
    assert after(b"abc", []) == b"abc"


def test_pending_data_may_be_there_in_part_torn_zero_or_out_of_order():
    big = bytes(range(256)) * 20
    file = File(b"old", [Write(0, b"new!"), Write(4, big)])
    possible = contents(file)
    assert possible[0] == b"old"
    assert possible[-1] == b"new!" + big
    assert b"new!" in possible  # the second did not get there
    assert b"old\0" + big in possible  # nor the first
    for sector in (512, 4096):
        assert b"new!" + big[:sector] in possible
        assert b"new!" + big[:sector] + bytes(len(big) - sector) in possible
    assert zeros(file) in possible
    assert zeros(file) == bytes(4 + len(big))
    assert len(set(possible)) >= len(possible) - 1


def test_what_was_synced_stays():
    disk = after_all(
        {},
        call("create", "a"),
        write("a", b"data"),
        call("fsync", "a"),
        call("fsync", ""),
    )
    assert found(disk) == [{"a": b"data"}]
    assert disk.unsynced("/r") == []


def test_a_file_that_was_synced_may_lose_its_name():
    disk = after_all({}, call("create", "a"), write("a", b"data"), call("fsync", "a"))
    assert found(disk) == [{}, {"a": b"data"}]
    assert disk.unsynced("/r") == ["/r/a"]


def test_a_name_may_be_there_before_its_data():
    disk = after_all({"a": b"old"}, call("create", "t"), write("t", b"new"), rename("t", "a"))
    trees = found(disk)
    for content in (b"old", b"", b"\0\0\0", b"new"):
        assert {"a": content} in trees
    assert {"a": b"old", "t": b"new"} in trees  # before the rename
    assert {} not in trees  # renaming over a name never loses it
    assert disk.tree() == {"a": b"new"}
    assert disk.synced() == {"a": b"old"}


def test_a_rename_after_fsync_is_old_or_new():
    disk = after_all(
        {"a": b"old"},
        call("create", "t"),
        write("t", b"new"),
        call("fsync", "t"),
        rename("t", "a"),
    )
    assert {tree["a"] for tree in found(disk)} == {b"old", b"new"}
    disk.apply(call("fsync", ""))
    assert found(disk) == [{"a": b"new"}]


def test_between_two_folders_either_step_may_be_lost():
    start = {"one": None, "two": None, "one/x": None, "one/x/f": b"1"}
    disk = after_all(start, rename("one/x", "two/x"))
    there = {frozenset(p for p in tree if p.endswith("/f")) for tree in found(disk)}
    assert there == {
        frozenset(), frozenset({"one/x/f"}), frozenset({"two/x/f"}),
        frozenset({"one/x/f", "two/x/f"}),
    }  # fmt: skip
    disk.apply(call("fsync", "two"))
    assert all("two/x/f" in tree for tree in found(disk))


def test_a_later_step_may_jump_ahead():
    disk = after_all({}, call("mkdir", "a"), call("mkdir", "b"))
    assert sorted(map(sorted, found(disk))) == [[], ["a"], ["a", "b"], ["b"]]


def test_names_in_a_new_folder_wait_for_the_folder_itself():
    disk = after_all(
        {},
        call("mkdir", "d"),
        call("create", "d/a"),
        write("d/a", b"1"),
        call("fsync", "d/a"),
        call("fsync", ""),
    )
    assert found(disk) == [{"d": None}, {"d": None, "d/a": b"1"}]
    assert disk.unsynced("/r") == ["/r/d/a"]
    assert disk.unsynced("/r/d/a") == []


def test_links_removals_and_truncation():
    disk = after_all({"a": b"12"}, call("link", "a", target="/r/b"), call("unlink", "a"))
    assert disk.tree() == {"b": b"12"}
    assert {"a": b"12", "b": b"12"} in found(disk)
    assert {} in found(disk)
    disk = after_all({"a": b"12"}, call("create", "a", truncates=True))
    assert found(disk) == [{"a": b"12"}, {"a": b""}]
    disk = after_all({"d": None}, call("rmdir", "d"))
    assert found(disk) == [{"d": None}, {}]


def test_a_symbolic_link_is_a_name():
    disk = after_all({"old": "there"}, call("symlink", "a", data=b"elsewhere"))
    assert found(disk) == [{"old": "there"}, {"old": "there", "a": "elsewhere"}]


def test_two_names_of_one_file_are_not_renamed():
    disk = after_all({"a": b"1"}, call("link", "a", target="/r/b"), rename("a", "b"))
    assert disk.tree() == {"a": b"1", "b": b"1"}


def test_failed_calls_change_nothing():
    failed = [replace(call("fsync", "a"), result=-5), replace(call("unlink", "a"), result=None)]
    disk = after_all({"a": b"1"}, write("a", b"2"), *failed)
    assert disk.unsynced("/r") == ["/r/a"]
    assert disk.tree() == {"a": b"2"}
    assert disk.synced() == {"a": b"1"}


def test_what_is_not_modelled_is_said():
    with pytest.raises(ValueError, match="mknod"):
        after_all({}, call("mknod", "a"))
    with pytest.raises(ValueError, match="outside"):
        after_all({"a": b""}, call("rename", "a", target="/elsewhere/a"))
