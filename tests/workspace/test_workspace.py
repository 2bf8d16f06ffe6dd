"""A workspace's life: create, publish, refuse, resume, roll back; damage named and survivable."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edge_pslora.errors import EdgePsloraError, UsageError, WorkspaceError, WorkspaceLockedError
from edge_pslora.workspace.lock import writer_lock
from edge_pslora.workspace.workspace import Workspace
from tests.workspace import workspace_driver as driver


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    """That fsync is called, and when, is test_durable's and test_workspace_crash's business."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def workspace(tmp_path):
    return driver.make_workspace(tmp_path / "w")


@pytest.fixture
def three(workspace):
    for digest in ("a", "b", "c"):
        driver.add_generation(workspace, digest)
    return workspace


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_new_workspace_serves_nothing_yet(workspace):
    assert workspace.current() is None
    assert workspace.generations() == ()
    assert workspace.labels() == ("cat", "dog")
    assert Workspace.open(workspace.path) == workspace
    assert json.loads((workspace.base / "source.json").read_text())["kind"] == "auto"
    workspace.verify_base()


def test_generations_are_numbered_and_chained(three):
    assert three.generations() == (1, 2, 3)
    assert [three.generation(n).manifest.parent for n in (1, 2, 3)] == [None, 1, 2]
    current = three.current()
    assert current.number == 3
    assert current.labels == ("cat", "dog", "owl")
    assert set(current.manifest.files) == {
        "model.safetensors",
        "history.safetensors",
        "adapter/adapter_model.safetensors",
    }
    with pytest.raises(WorkspaceError, match=r"a file model\.onnx"):
        current.file("model.onnx")


def test_rollback_moves_the_pointer_and_deletes_nothing(three):
    before = tree(three.path / "generations")
    assert three.rollback().number == 2
    assert three.rollback().number == 1
    assert three.rollback(3).number == 3
    assert three.rollback(1).number == 1
    assert tree(three.path / "generations") == before
    with pytest.raises(UsageError, match="generation 1, the first"):
        three.rollback()
    with pytest.raises(WorkspaceError, match="generations: 1, 2, 3"):
        three.rollback(9)
    assert three.current().number == 1


def test_after_a_rollback_numbers_go_on_and_the_parent_is_the_current_one(three):
    three.rollback(1)
    assert driver.add_generation(three, "d") == 4
    assert three.current().manifest.parent == 1


def test_what_is_published_never_changes(three):
    before = tree(three.path / "generations" / "000002")
    three.rollback()
    driver.add_generation(three, "d")
    assert tree(three.path / "generations" / "000002") == before


@pytest.mark.parametrize("same", [True, False])
def test_a_run_resumes_only_under_its_own_digest(workspace, same):
    started = workspace.begin("run")
    assert not started.resumed
    (started.folder / "half").write_bytes(b"1")
    (started.scratch / "checkpoint").write_bytes(b"2")
    (started.folder / ".x.1.0123abcd.tmp").write_bytes(b"3")
    again = workspace.begin("run" if same else "other")
    assert (again.number, again.folder, again.resumed) == (1, started.folder, same)
    assert set(tree(again.folder)) == ({"half"} if same else set())
    assert set(tree(again.scratch)) == ({"run.json", "checkpoint"} if same else {"run.json"})


def test_a_rollback_ends_the_run_that_was_on_the_other_parent(three):
    three.begin("run")
    three.rollback()
    assert not three.begin("run").resumed


def test_a_refused_generation_stays_until_the_next_run(workspace):
    staged = workspace.begin("run")
    driver.fill(staged.folder, 1)
    refused = workspace.refuse(staged.folder)
    assert (refused / "model.safetensors").is_file()
    assert workspace.current() is None
    assert any("gate refused" in line for line in workspace.status()["warnings"])
    again = workspace.begin("run")
    assert not again.resumed
    assert not refused.exists()
    driver.fill(again.folder, 1)
    workspace.refuse(again.folder)
    assert [path.name for path in (workspace.path / "staging").iterdir()] == ["refused"]


def test_a_publication_killed_before_the_pointer_can_be_finished(three, monkeypatch):
    number, folder, _ = three.begin("run")
    driver.fill(folder, number)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("edge_pslora.workspace.workspace.replace_pointer", killed)
    with pytest.raises(KeyboardInterrupt):
        three.publish(folder, driver.manifest_for(three, number))
    monkeypatch.undo()
    assert three.current().number == 3
    assert three.recover("other") is None
    assert three.recover("run").number == 4
    assert three.current().number == 4
    assert three.recover("run") is None
    three.rollback()
    assert three.recover("run") is None  # the user went back; that stands


def test_publish_checks_number_parent_and_base(workspace):
    number, folder, _ = workspace.begin("run")
    driver.fill(folder, number)
    good = driver.manifest_for(workspace, number)
    for bad in (
        replace(good, number=2),
        replace(good, parent=1, number=2),
        replace(good, base_digest="0" * 64),
    ):
        with pytest.raises(WorkspaceError, match="the workspace changed meanwhile"):
            workspace.publish(folder, bad)
    with pytest.raises(EdgePsloraError, match="finite values"):
        workspace.publish(folder, replace(good, metrics={"accuracy": float("nan")}))
    with pytest.raises(WorkspaceError, match="different texts in labels"):
        workspace.publish(folder, replace(good, labels=("a", "a")))
    assert workspace.generations() == ()
    assert workspace.publish(folder, good).number == 1


def test_links_and_odd_names_are_not_published(workspace):
    number, folder, _ = workspace.begin("run")
    driver.fill(folder, number)
    (folder / "link").symlink_to("/etc/passwd")
    with pytest.raises(EdgePsloraError):
        workspace.publish(folder, driver.manifest_for(workspace, number))
    (folder / "link").unlink()
    (folder / "odd\nname").write_bytes(b"")
    with pytest.raises(WorkspaceError, match="plain file names"):
        workspace.publish(folder, driver.manifest_for(workspace, number))
    assert workspace.generations() == ()


@pytest.mark.parametrize("call", ["write", "fsync", "rename", "mkdir"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_at_any_call_leaves_the_old_generation_serving(three, call, code):
    with pytest.MonkeyPatch.context() as patch:
        real = getattr(os, call)
        for n in range(1, 100):
            calls = 0

            def failing(*args, n=n, **kwargs):
                nonlocal calls
                calls += 1
                if calls == n:
                    raise OSError(code, os.strerror(code))
                return real(*args, **kwargs) if call != "fsync" else None

            parent = three.current().number
            patch.setattr(os, call, failing)
            try:
                driver.add_generation(three, f"run {n}")
            except EdgePsloraError as error:
                assert os.strerror(code) in str(error)  # noqa: PT017
                patch.setattr(os, call, real)
                three.current().verify()
                # only a failed fsync of the folder comes after the step that promotes
                moved = three.current().number != parent
                assert not moved or call == "fsync"
            else:
                if calls < n:  # else it was in the cleaning, after all that matters was done
                    break
        else:
            pytest.fail("the run never got through")
    assert three.status(verify=True)["damage"] == []
    driver.add_generation(three, "last")
    assert three.status()["warnings"] == []
    assert not list(three.path.rglob("*.tmp"))


DAMAGE = {
    "pointer gone": lambda w: (w / "current").unlink(),
    "pointer empty": lambda w: (w / "current").write_bytes(b""),
    "pointer torn": lambda w: (w / "current").write_bytes((w / "current").read_bytes()[:40]),
    "pointer without its end": lambda w: (w / "current").write_bytes(
        (w / "current").read_bytes()[:-1]
    ),
    "pointer to nothing": lambda w: (w / "current").write_text("000009 " + "a" * 64 + "\n"),
    "pointer with another sha": lambda w: (w / "current").write_text("000003 " + "a" * 64 + "\n"),
    "pointer is a folder": lambda w: ((w / "current").unlink(), (w / "current").mkdir())[0],
    "manifest gone": lambda w: (w / "generations/000003/manifest.json").unlink(),
    "manifest edited": lambda w: (w / "generations/000003/manifest.json").write_text(
        (w / "generations/000003/manifest.json").read_text().replace("owl", "cow")
    ),
    "file gone": lambda w: (w / "generations/000003/model.safetensors").unlink(),
    "file cut": lambda w: os.truncate(w / "generations/000003/model.safetensors", 20),
    "generation gone": lambda w: (w / "generations/000003").rename(w / "generations/old"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named_and_rollback_to_a_good_generation_works(three, case):
    DAMAGE[case](three.path)
    again = Workspace.open(three.path)
    with pytest.raises(WorkspaceError, match=r"rollback|roll back") as caught:
        again.current()
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)
    with pytest.raises(WorkspaceError):
        again.status()
    if case == "pointer is a folder":
        with pytest.raises(EdgePsloraError, match="Is a directory"):
            again.rollback(2)
        return
    assert again.rollback(2).number == 2
    assert again.current().number == 2


def test_same_length_damage_is_found_when_a_file_is_loaded_and_by_verify(three):
    path = three.path / "generations/000003/model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    current = three.current()  # lengths only
    with pytest.raises(WorkspaceError, match="other contents"):
        current.file("model.safetensors")
    current.file("history.safetensors")
    assert three.status()["damage"] == []
    (line,) = three.status(verify=True)["damage"]
    assert "other contents" in line
    three.rollback()
    with pytest.raises(WorkspaceError, match="other contents"):
        three.rollback(3)
    assert three.current().number == 2


def test_every_flipped_bit_of_pointer_and_manifest_is_noticed(three):
    manifest = three.path / "generations/000003/manifest.json"
    for path in (three.path / "current", manifest):
        good = path.read_bytes()
        for byte in range(0, len(good), 1 if len(good) < 200 else 7):
            path.write_bytes(good[:byte] + bytes([good[byte] ^ 4]) + good[byte + 1 :])
            with pytest.raises(WorkspaceError):
                three.current()
        path.write_bytes(good)
    assert three.current().number == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c | {"format_version": 2}, "format version 1; found 2"),
        (lambda c: c | {"format_version": True}, "format version 1"),
        (lambda c: c | {"more": 1}, "the fields"),
        (lambda c: c | {"labels": [1]}, "the fields"),
        (lambda c: c | {"task_type": "chess"}, "the fields"),
        (lambda c: c | {"base_digest": "0" * 64}, "the base digest"),
        (lambda c: c | {"base_files": {}}, "a file model.safetensors"),
        (lambda c: c | {"base_files": {"../x": {"bytes": 1, "sha256": "0" * 64}}}, "safe file"),
    ],
)
def test_a_header_that_is_not_ours(workspace, change, message):
    path = workspace.path / "workspace.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(WorkspaceError, match=message):
        Workspace.open(workspace.path)


def test_missing_pieces(workspace, tmp_path):
    with pytest.raises(WorkspaceError, match="expected a workspace"):
        Workspace.open(tmp_path / "nowhere")
    (workspace.base / "model.safetensors").unlink()
    with pytest.raises(WorkspaceError, match="no such file"):
        Workspace.open(workspace.path)


def test_the_base_is_checked_before_it_is_loaded(workspace):
    path = workspace.base / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    Workspace.open(workspace.path)
    with pytest.raises(WorkspaceError, match="other contents"):
        workspace.verify_base()
    assert len(workspace.status(verify=True)["damage"]) == 1


def test_other_peoples_folders_are_left_alone(tmp_path, workspace):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("x")
    with writer_lock(tmp_path / "home"), pytest.raises(WorkspaceError, match=r"thesis\.txt"):
        Workspace.stage_base(tmp_path / "home")
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["thesis.txt"]
    with pytest.raises(WorkspaceError, match="found a workspace"):
        Workspace.stage_base(workspace.path)


def test_status_tells_what_is_there(three):
    three.rollback()
    three.begin("unfinished")
    status = three.status(verify=True)
    assert json.loads(json.dumps(status)) == status
    assert (status["generation"], status["parent"], status["task"]) == (2, 1, "t")
    assert status["labels"] == ["cat", "dog", "owl"]
    assert status["certificate"] == {"largest_eps": 0.5, "layers": []}
    history = three.current().path / "history.safetensors"
    assert status["history_bytes"] == history.stat().st_size
    assert [row["number"] for row in status["generations"]] == [1, 2, 3]
    assert [row["current"] for row in status["generations"]] == [False, True, False]
    assert all(row["disk_bytes"] > 0 and row["damage"] is None for row in status["generations"])
    assert status["warnings"] == ["staging/000004: an unfinished run; the same command resumes it"]


def test_one_writer_at_a_time_and_readers_never_wait(workspace):
    code = (
        "import sys; from pathlib import Path\n"
        "from edge_pslora.workspace.lock import writer_lock\n"
        "with writer_lock(Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(workspace.path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "in\n"
        with (
            pytest.raises(WorkspaceLockedError, match=f"process {other.pid}") as caught,
            writer_lock(workspace.path),
        ):
            pass
        assert caught.value.exit_code == 5
        assert workspace.current() is None
        other.kill()
    with writer_lock(workspace.path):  # the lock ended with its process
        pass


def test_the_lock_leaves_nothing_where_no_workspace_came_of_it(tmp_path):
    for failing in (False, True):
        try:
            with writer_lock(tmp_path / "new"):
                Workspace.stage_base(tmp_path / "new").rmdir()
                if failing:
                    raise KeyError
        except KeyError:
            pass
        assert not (tmp_path / "new").exists()


def test_a_base_whose_import_failed_is_removed_by_the_next_try(tmp_path):
    with writer_lock(tmp_path / "w"):
        (Workspace.stage_base(tmp_path / "w") / "rubbish").write_bytes(b"x")
    assert driver.make_workspace(tmp_path / "w").current() is None
    assert not list((tmp_path / "w" / "staging").iterdir())
