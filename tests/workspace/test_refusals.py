"""What is remembered of refused sessions, over runs, kills and full disks."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_pslora.errors import EdgePsloraError
from edge_pslora.workspace import durable, refusals
from edge_pslora.workspace.lock import writer_lock
from edge_pslora.workspace.workspace import Workspace
from tests.pages import pages_kit as kit


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return kit.make_workspace(tmp_path / "w", 1)


def tasks(records: list[refusals.Record]) -> list[str]:
    return [record["task"] for record in records]


def test_they_wait_for_the_next_manifest(workspace: Workspace):
    with writer_lock(workspace.path):
        kit.refuse(workspace, "bad", run="one")
        kit.refuse(workspace, "worse", run="two")
        assert tasks(workspace.refusals()) == ["bad", "worse"]
        kit.publish(workspace, kit.metrics(2, 1))
        assert workspace.refusals() == []
        kit.publish(workspace, kit.metrics(3, 1))
    found = [workspace.generation(n).manifest.metrics for n in (1, 2, 3)]
    assert tasks(found[1]["refused_before"]) == ["bad", "worse"]
    assert "refused_before" not in found[0]
    assert "refused_before" not in found[2]
    record = found[1]["refused_before"][0]
    assert (record["accuracy_after"], record["parent"], record["samples"]) == (0.25, 1, 7)
    assert "labels" not in record  # figures only


def test_the_same_run_again_is_told_once(workspace: Workspace):
    with writer_lock(workspace.path):
        for run in ("one", "two", "two"):
            kit.refuse(workspace, f"of {run}", run=run)
    assert tasks(workspace.refusals()) == ["of one", "of two"]


def test_a_refusal_without_a_record_keeps_the_others(workspace: Workspace):
    with writer_lock(workspace.path):
        kit.refuse(workspace, "bad", run="one")
        workspace.refuse(workspace.begin("an update").folder)
    assert tasks(workspace.refusals()) == ["bad"]


@pytest.mark.parametrize("step", range(4))
def test_a_kill_while_the_next_run_begins_loses_none(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, step: int
):
    """Killed at each thing that is written or removed durably between one run and the next."""

    class KilledError(Exception):
        pass

    left = [step]

    def killing(real):
        def call(*arguments, **options):
            if left[0] == 0:
                raise KilledError
            left[0] -= 1
            return real(*arguments, **options)

        return call

    with writer_lock(workspace.path):
        kit.refuse(workspace, "bad", run="one")
        with monkeypatch.context() as patched:
            for name in ("write_bytes", "remove_folder", "remove_file"):
                patched.setattr(durable, name, killing(getattr(durable, name)))
            with pytest.raises(KilledError):
                workspace.begin("two")
        assert tasks(workspace.refusals()) == ["bad"]
        staged = workspace.begin("two")
    assert tasks(refusals.read(staged.scratch)) == ["bad"]
    assert sorted(p.name for p in staged.folder.parent.iterdir()) == ["000002", "000002.run"]


def test_on_a_full_disk_the_run_goes_on_without(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
):
    with writer_lock(workspace.path):
        kit.refuse(workspace, "bad", run="one")
        real = durable.write_bytes

        def full(path: Path, data: bytes, **options: int) -> None:
            if path.name == refusals.REFUSALS:
                raise EdgePsloraError("disk", expected="room", found="none", remedy="make some")
            real(path, data, **options)

        monkeypatch.setattr(durable, "write_bytes", full)
        staged = workspace.begin("two")
    assert refusals.read(staged.scratch) == []
    assert not (workspace.path / "staging" / "refused").exists()


@pytest.mark.parametrize("content", [b"", b"[]", b'{"sessions": 3}', b'{"sessions": [1]}', b"\xff"])
def test_what_cannot_be_read_is_nothing(workspace: Workspace, content: bytes):
    with writer_lock(workspace.path):
        kit.refuse(workspace, "bad", run="one")
        (workspace.path / "staging" / "refused" / refusals.REFUSALS).write_bytes(content)
        assert workspace.refusals() == []
        kit.publish(workspace, kit.metrics(2, 1))


def test_only_the_newest_are_kept(tmp_path: Path):
    refusals.write(tmp_path, [{"task": str(i)} for i in range(refusals.MOST + 5)])
    assert tasks(refusals.read(tmp_path)) == [str(i) for i in range(5, refusals.MOST + 5)]
