"""Bundles that are taken, refused, on trial and gone back on; what the device then remembers."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest

from edge_pslora.device import assemble, local_gate, receive
from edge_pslora.errors import (
    BundleError,
    EdgePsloraError,
    GateRefusedError,
    UsageError,
    WorkspaceError,
    WorkspaceLockedError,
)
from edge_pslora.workspace import layout
from edge_pslora.workspace.update_state import read_state, replace_state, require_no_trial
from tests.device.device_kit import SICK, HealthCheck, checked, head, loop_for_ever

pytestmark = pytest.mark.usefixtures("gate_here")


def state_of(device):
    state = read_state(device.path)
    assert state is not None
    return state


def everything(device):
    return {
        path.relative_to(device.path).as_posix(): path.read_bytes()
        for path in sorted(device.path.rglob("*"))
        if path.is_file() and path.name != "lock"
    }


def test_a_device_without_a_workspace_makes_one(made, fresh):
    report = fresh.apply(made.one, device_class="default")
    assert (report.applied, report.generation, report.trial) == (True, 1, "kept")
    served, published = fresh.served(), made.publisher.workspace.generation(1)
    assert served.manifest.files == published.manifest.files
    assert served.manifest.metrics["bundle"] == {"counter": 1, "kind": "full", "generation": 1}
    served.verify()
    fresh.workspace.verify_base()
    checked(served.path / "model.onnx")
    assert fresh.workspace.header == made.publisher.workspace.header
    state = state_of(fresh)
    assert (state.device_class, state.counter, state.trial) == ("default", 1, None)
    assert list((fresh.path / "staging").iterdir()) == []


def test_the_next_bundle_and_the_same_again(made, device):
    report = device.apply(made.two)
    assert (report.applied, report.generation, report.counter) == (True, 2, 2)
    assert report.gate["anchors"] == 40
    assert report.gate["anchor_before"] == report.gate["anchor_after"] == 1.0
    assert device.served().manifest.parent == 1
    before = everything(device)
    again = device.apply(made.two, check=SICK)
    assert (again.applied, again.generation) == (False, 2)
    assert "already taken" in again.reason
    assert everything(device) == before
    facts = device.workspace.status()["updates"]
    assert facts["counter"] == 2
    assert facts["root_version"] == 1
    assert facts["expires"] > "2026"
    assert facts["trial"] is None


def test_an_older_bundle_is_refused_also_after_a_rollback(made, device):
    device.apply(made.two)
    before = everything(device)
    with pytest.raises(BundleError, match=r"must be >=|older bundle"):
        device.apply(made.one)
    assert everything(device) == before
    device.workspace.rollback()
    assert device.served().number == 1
    assert state_of(device).counter == 2
    with pytest.raises(BundleError):
        device.apply(made.one)
    report = device.apply(made.two)
    assert (report.applied, report.serves, report.counter) == (False, False, 2)
    assert device.served().number == 1


def test_the_counter_counts_where_versions_do_not(made, device, tmp_path):
    """A release of a higher number with an older counter."""
    device.apply(made.two)
    publisher = replace(made.publisher, path=tmp_path / "p")
    shutil.copytree(made.publisher.path, publisher.path)
    for _ in range(3):
        old = publisher.bundle("fresh", 1, counter=None)
    replace_state(device.path, replace(state_of(device), counter=9))
    with pytest.raises(BundleError, match="found 3: an older bundle"):
        device.apply(old)
    assert device.served().number == 2
    assert state_of(device).counter == 9


def test_three_failures_bring_the_old_model_back(made, device, tmp_path):
    count = tmp_path / "count"
    check = HealthCheck(("sh", "-c", f"echo >> {count}; exit 7"), 10, 0)
    with pytest.raises(GateRefusedError) as failed:
        device.apply(made.two, check=check)
    assert failed.value.exit_code == 3
    assert failed.value.figures["attempts"] == 3
    assert "exit code 7" in str(failed.value)
    assert device.served().number == 1
    state = state_of(device)
    assert (state.counter, state.failed_counter, state.trial) == (2, 2, None)
    assert count.read_text() == "\n" * 3
    for source in (made.two, made.two):
        with pytest.raises(GateRefusedError, match="this device refused"):
            device.apply(source)
    assert count.read_text() == "\n" * 3
    assert device.apply(None).reason == "nothing is pending"


def test_a_check_that_fails_once_may_succeed(made, device, tmp_path):
    check = HealthCheck(("sh", "-c", f"test -e {tmp_path / 'x'} || ! touch {tmp_path / 'x'}"), 9, 0)
    report = device.apply(made.two, check=check)
    assert (report.trial, report.attempts, len(report.problems)) == ("kept", 2, 0)
    assert device.served().number == 2


@pytest.mark.parametrize("attempts", [1, 2, 3])
def test_checks_that_took_the_device_down_count(attempts, made, device, tmp_path):
    device.apply(made.two, check=None)
    state = state_of(device)
    replace_state(device.path, replace(state, trial=replace(state.trial, attempts=attempts)))
    count = tmp_path / "count"
    count.touch()
    with pytest.raises(GateRefusedError):
        device.apply(None, check=HealthCheck(("sh", "-c", f"echo >> {count}; false"), 9, 0))
    assert len(count.read_text()) == 3 - attempts
    assert device.served().number == 1


def test_without_a_check_it_stays_on_trial(made, device):
    report = device.apply(made.two, check=None)
    assert (report.applied, report.trial, report.generation) == (True, "open", 2)
    assert state_of(device).trial.previous == 1
    assert device.workspace.status()["updates"]["trial"]["generation"] == 2
    assert device.apply(None, check=None).trial == "open"
    assert "on trial" in device.apply(made.two, check=None).reason
    with pytest.raises(WorkspaceLockedError, match="generation 2"):
        require_no_trial(device.path)
    with pytest.raises(UsageError, match="no trial when the next bundle comes"):
        device.apply(made.worse, check=None)
    assert device.apply(None, check=None, accept=True).trial == "kept"
    require_no_trial(device.path)


def test_a_rollback_ends_the_trial(made, device):
    device.apply(made.two, check=None)
    assert device.workspace.rollback().number == 1
    state = state_of(device)
    assert (state.counter, state.failed_counter, state.trial) == (2, 2, None)
    with pytest.raises(GateRefusedError):
        device.apply(made.two)


def test_a_rollback_ends_the_trial_of_a_first_update(made, fresh):
    fresh.apply(made.one, device_class="default", check=None)
    assert fresh.served().number == 1
    assert fresh.workspace.rollback() is None
    assert fresh.served() is None
    state = state_of(fresh)
    assert (state.counter, state.failed_counter, state.trial) == (1, 1, None)
    with pytest.raises(GateRefusedError):
        fresh.apply(made.one)
    with pytest.raises(UsageError, match="a generation before the current one; found none"):
        fresh.workspace.rollback()
    assert fresh.workspace.rollback(1).number == 1


def test_the_rollback_of_a_first_update_goes_on_where_it_was_killed(made, fresh, monkeypatch):
    from edge_pslora.workspace import workspace as module

    fresh.apply(made.one, device_class="default", check=None)
    monkeypatch.setattr(module, "replace_pointer", lambda path, pointer: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fresh.workspace.rollback()
    monkeypatch.undo()
    assert fresh.served().number == 1
    with pytest.raises(GateRefusedError):
        fresh.apply(None)
    assert fresh.served() is None
    assert state_of(fresh).trial is None


def test_a_rollback_says_where_to_before_it_moves_the_pointer(made, device, monkeypatch):
    from edge_pslora.workspace import workspace as module

    device.apply(made.two, check=None)
    seen = []

    def stop(path, pointer):
        seen.append((read_state(path).trial, pointer.number))
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "replace_pointer", stop)
    with pytest.raises(KeyboardInterrupt):
        device.workspace.rollback()
    monkeypatch.undo()
    (trial, number), *_ = seen
    assert (trial.going_back, trial.previous, number) == (True, 1, 1)
    assert device.served().number == 2
    with pytest.raises(GateRefusedError):
        device.apply(None)
    assert device.served().number == 1


def test_a_first_generation_that_fails_leaves_nothing_serving(made, fresh):
    with pytest.raises(GateRefusedError, match="nothing serves"):
        fresh.apply(made.one, check=SICK)
    assert fresh.served() is None
    assert fresh.workspace.status()["generation"] is None
    assert fresh.apply(made.two).generation == 2


def test_a_generation_that_the_disk_lost_does_not_serve(made, device, monkeypatch):
    from edge_pslora.device import trial

    real = trial.replace_pointer
    monkeypatch.setattr(trial, "replace_pointer", lambda *_: (_ for _ in ()).throw(OSError))
    with pytest.raises(OSError):
        device.apply(made.two)
    monkeypatch.setattr(trial, "replace_pointer", real)
    assert device.served().number == 1
    (device.path / "generations/000002/model.onnx").write_bytes(b"lost")
    with pytest.raises(GateRefusedError, match="4 bytes"):
        device.apply(made.two)
    assert device.served().number == 1


def test_a_damaged_state_stops_no_status_and_no_rollback(made, device):
    device.apply(made.two)
    (device.path / "updates/state.json").write_bytes(b'{"format_version":')
    facts = device.workspace.status()
    assert facts["generation"] == 2
    assert facts["updates"]["counter"] is None
    assert "state.json" in facts["damage"][0]
    with pytest.raises(WorkspaceError):
        device.apply(made.two)
    assert device.workspace.rollback().number == 1


@pytest.mark.parametrize("name", ["root.json", "timestamp.json"])
def test_damaged_trust_is_no_trust(name, made, device):
    (device.path / "updates/trusted" / name).write_bytes(b"{}")
    if name == "timestamp.json":  # of no use to anybody, and replaced
        assert device.apply(made.two).generation == 2
        return
    with pytest.raises(BundleError):
        device.apply(made.two)
    assert device.served().number == 1
    assert device.workspace.status()["generation"] == 1


def test_who_it_is_for(made, device, fresh, tmp_path):
    with pytest.raises(UsageError, match="--root"):
        fresh.apply(made.one, root=None)
    assert not fresh.path.exists()
    with pytest.raises(BundleError, match="devices of class pump"):
        fresh.apply(made.one, device_class="pump")
    with pytest.raises(UsageError, match="as this device was set up"):
        device.apply(made.two, device_class="pump")
    with pytest.raises(UsageError, match="letters"):
        fresh.apply(made.one, device_class="../x")
    other = tmp_path / "root.json"
    other.write_bytes(made.one.joinpath("metadata/1.root.json").read_bytes() + b"\n")
    with pytest.raises(BundleError):
        device.apply(made.two, root=other)


def test_a_base_that_is_another(made, device, fresh):
    small = made.publisher.bundle("no-base", 2, with_base=False, counter=2)
    with pytest.raises(BundleError, match="bundle with the base model"):
        fresh.apply(small)
    header = device.path / "workspace.json"
    real = receive.published_header
    assert header.exists()
    with pytest.MonkeyPatch.context() as patch:
        changed = lambda offer: replace(real(offer), base_digest="0" * 64)  # noqa: E731
        patch.setattr(receive, "published_header", changed)
        with pytest.raises(BundleError, match="one base model"):
            device.apply(small)
    assert device.served().number == 1


def test_changed_payload_is_never_parsed(made, device, tmp_path, monkeypatch):
    """One bit of each file; the parsers are not called."""
    monkeypatch.setattr(assemble, "open_tensors", lambda *_, **__: pytest.fail("parsed"))
    folder = tmp_path / "bundle"
    for target in sorted((made.two / "targets").rglob("*.*")):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(made.two, folder)
        path = folder / target.relative_to(made.two)
        if not path.is_file() or "/base/" in str(path):
            continue
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        path.write_bytes(data)
        with pytest.raises(BundleError, match="other contents"):
            device.apply(folder)
        path.write_bytes(target.read_bytes() + b"x")
        with pytest.raises(BundleError, match="found more"):
            device.apply(folder)
        assert device.served().number == 1


def test_a_graph_that_reaches_out_or_runs_for_ever_never_runs(made, device, tmp_path, monkeypatch):
    """Signed or not: it is looked at before onnxruntime gets it."""
    publisher = replace(made.publisher, path=tmp_path / "p")
    shutil.copytree(made.publisher.path, publisher.path)
    monkeypatch.setattr(local_gate, "judge", lambda *_: pytest.fail("it ran"))
    number = publisher.add(head(), nodes=loop_for_ever())
    with pytest.raises(BundleError, match="graphs of their own"):
        device.apply(publisher.bundle("loop", number))
    number = publisher.add(head(), external="/etc/passwd")
    with pytest.raises(BundleError, match="passwd"):
        device.apply(publisher.bundle("outside", number))
    assert device.served().number == 1


def test_what_sessions_would_go_on_from_is_whole(made, device, tmp_path):
    """Signed, but not what it should be: tensors that lie, an adapter of another rank."""
    publisher = replace(made.publisher, path=tmp_path / "p")
    shutil.copytree(made.publisher.path, publisher.path)
    bad = (8).to_bytes(8, "little") + b'{"a":1} '
    number = publisher.add(head(), files={"history.safetensors": bad})
    with pytest.raises(BundleError, match=r"history\.safetensors"):
        device.apply(publisher.bundle("memory", number))
    adapter = {"adapter/adapter_config.json": b'{"peft_type":"LORA","r":3,"lora_alpha":1}'}
    adapter["adapter/adapter_model.safetensors"] = (2).to_bytes(8, "little") + b"{}"
    number = publisher.add(head(), files=adapter)
    with pytest.raises(BundleError, match="adapter"):
        device.apply(publisher.bundle("adapter", number))
    assert device.served().number == 1


def test_too_little_room_is_said_before_anything_is_fetched(made, device, monkeypatch):
    full = SimpleNamespace(f_bavail=1, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    with pytest.raises(EdgePsloraError, match="bytes free"):
        device.apply(made.two)
    monkeypatch.undo()
    assert device.served().number == 1


def test_a_killed_download_goes_on(made, device, monkeypatch):
    real, names = receive.stream_target, []

    def cut(source, name, digest):
        names.append(name)
        if name == "model.safetensors" and names.count(name) == 1:
            raise BundleError("x", expected="x", found="unplugged", remedy="x")
        return real(source, name, digest)

    monkeypatch.setattr(receive, "stream_target", cut)
    with pytest.raises(BundleError, match="unplugged"):
        device.apply(made.two)
    assert device.apply(made.two).generation == 2
    assert names.count("model.onnx") == 1


def test_a_lock_is_respected(made, device):
    from edge_pslora.workspace.lock import writer_lock

    with writer_lock(device.path), pytest.raises(WorkspaceLockedError):
        device.apply(made.two)


def test_a_folder_that_a_lost_rename_left_under_its_old_name_goes(made, device):
    """A loss of power in the midst of the publication: both names, and the state of before."""
    device.apply(made.two)
    state = device.path / layout.UPDATES / layout.UPDATE_STATE
    published = state.read_bytes()
    staged = layout.staging_folder(device.path, 2)
    shutil.copytree(layout.generation_folder(device.path, 2), staged)
    assert device.apply(made.two).reason == "already taken; nothing to do"
    assert not staged.exists()
    assert state.read_bytes() == published
    assert device.served().number == 2
