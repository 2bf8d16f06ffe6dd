"""The update module and the hooks of examples/updaters, driven as their updaters drive them."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from tests.updaters.updaters_kit import (
    SCRIPTS,
    SHELLS,
    UPDATERS,
    Answer,
    Device,
    Mender,
    apply_call,
    can,
    make_device,
    make_workspace,
    resume_call,
    rollback_call,
)

BUNDLE = {"bundle.tar": b"signed"}


@pytest.fixture
def device(tmp_path: Path) -> Device:
    """Generation 3 serves; its folder has a space in its name."""
    made = make_device(tmp_path / "a device")
    made.serve(3)
    return made


@pytest.fixture
def mender(device: Device) -> Mender:
    return Mender(device, device.folder / "payloads" / "0000" / "tree")


def test_scripts_are_posix_shell():
    assert SHELLS
    for path in (*SCRIPTS.values(), UPDATERS / "common.sh"):
        for shell in SHELLS:
            subprocess.run([*shell, "-n", str(path)], check=True)
        lines = path.read_text(encoding="utf-8").splitlines()
        code = "\n".join(line.strip() for line in lines if not line.strip().startswith("#"))
        for word in ("[[", "function ", "local ", "source ", "<<<", "declare ", " == "):
            assert word not in code, f"{path.name}: {word}"
    for path in SCRIPTS.values():
        assert path.stat().st_mode & 0o111, path
        assert path.read_text(encoding="utf-8").startswith("#!/bin/sh\n")


@pytest.mark.skipif(not can("shellcheck"), reason="shellcheck is not installed")
def test_shellcheck_finds_nothing():
    paths = [str(path) for path in (*SCRIPTS.values(), UPDATERS / "common.sh")]
    subprocess.run(["shellcheck", "--external-sources", *paths], check=True)


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
def test_every_shell_runs_them_alike(device, shell):
    tree = device.folder / "tree"
    (tree / "files").mkdir(parents=True)
    (tree / "tmp").mkdir()
    (tree / "files" / "bundle.tar").write_bytes(b"")
    device.plan("apply", Answer(serving=4))
    done = device.run(SCRIPTS["mender"], "ArtifactInstall", str(tree), shell=shell)
    assert done.returncode == 0, done.stderr
    assert device.calls() == [apply_call(device, tree / "files" / "bundle.tar")]
    done = device.run(SCRIPTS["mender"], "ArtifactRollback", str(tree), shell=shell)
    assert done.returncode == 0, done.stderr
    assert device.calls() == [rollback_call(device, 3)]


def test_mender_installs(mender):
    mender.device.plan("apply", Answer(serving=4))
    assert mender.deploy(BUNDLE)
    assert mender.device.calls() == [apply_call(mender.device, mender.tree / "files/bundle.tar")]
    assert [state for state, _ in mender.states] == [
        *("ProvidePayloadFileSizes", "Download", "ArtifactInstall", "NeedsArtifactReboot"),
        *("ArtifactCommit", "Cleanup"),
    ]
    assert mender.device.serving() == 4


@pytest.mark.parametrize("code", [1, 2, 3, 4, 5, 6])
def test_mender_is_told_of_every_failure_and_goes_back_once(mender, code):
    """apply went back by itself (3), or never left: there is nothing for ArtifactRollback to undo."""
    mender.device.plan("apply", Answer(code))
    assert not mender.deploy(BUNDLE)
    calls = [call[0] for call in mender.device.calls()]
    assert calls == (["apply"] if code in (2, 3, 4, 5) else ["apply", "rollback"])
    states = dict(mender.states)
    assert states["ArtifactInstall"] == code
    assert states["ArtifactRollback"] == states["ArtifactFailure"] == states["Cleanup"] == 0
    assert mender.device.serving() == 3


@pytest.mark.parametrize("served", [3, 4], ids=["before the move", "after the move"])
def test_mender_after_a_power_cut_in_install(mender, served):
    """Mender goes on with ArtifactRollback, whatever apply had reached: the old model has to serve, and
    a trial that has not moved the pointer yet must not do so at the next start."""
    mender.device.plan("apply", Answer(serving=served, cut=True))
    mender.device.plan("rollback", Answer(serving=3))
    assert not mender.deploy(BUNDLE)
    assert ("ArtifactInstall", -signal.SIGKILL) in mender.states
    assert mender.states[-1] == ("Cleanup", 0)
    assert mender.device.calls()[1:] == [rollback_call(mender.device, 3)]
    assert mender.device.serving() == 3


@pytest.mark.parametrize("moved", [None, 3], ids=["before the move", "after the move"])
def test_mender_after_power_cuts_while_going_back(mender, moved):
    """The state is called again, and does what is left to do."""
    mender.device.plan("apply", Answer(serving=4, cut=True))
    mender.device.plan("rollback", Answer(serving=moved, cut=True), Answer(serving=3))
    assert not mender.deploy(BUNDLE)
    ends = [code for state, code in mender.states if state == "ArtifactRollback"]
    assert ends == [-signal.SIGKILL, 0]
    assert mender.device.calls()[1:] == [rollback_call(mender.device, 3)] * 2
    assert mender.device.serving() == 3


def test_mender_does_not_undo_what_a_session_learned_since(mender):
    """The lock was never free, and the session that held it has promoted generation 4."""
    mender.device.plan("apply", Answer(5, serving=4))
    assert not mender.deploy(BUNDLE)
    assert [call[0] for call in mender.device.calls()] == ["apply"]
    assert mender.device.serving() == 4


def test_an_update_that_somebody_went_back_from_is_no_success(mender):
    """apply has nothing to do with it, exit code 0; the updater must not be told that it serves."""
    mender.device.plan("apply", Answer(0, serves=False))
    assert not mender.deploy(BUNDLE)
    assert dict(mender.states)["ArtifactInstall"] == 3
    assert [call[0] for call in mender.device.calls()] == ["apply"]


def test_what_served_first_is_remembered_over_attempts(mender):
    """ArtifactInstall a second time with the same tree does not take the new model for the old one."""
    mender.prepare(BUNDLE)
    mender.device.plan("apply", Answer(serving=4, cut=True))
    mender.device.plan("rollback", Answer(serving=3))
    mender.call("ArtifactInstall")
    mender.call("ArtifactInstall")
    assert not mender.failed
    mender.call("ArtifactRollback")
    assert mender.device.calls()[-1] == rollback_call(mender.device, 3)


def test_a_note_torn_by_a_power_cut_is_written_again(mender):
    mender.prepare(BUNDLE)
    for name in ("before.new", "before"):
        (mender.tree / "tmp" / name).write_bytes(b"")
    mender.call("ArtifactRollback")  # apply was not called yet
    assert not mender.failed
    assert mender.device.calls() == []
    mender.device.plan("apply", Answer(serving=4))
    mender.call("ArtifactInstall")
    assert (mender.tree / "tmp" / "before").read_text(encoding="ascii") == "3\n"


def test_mender_rollback_before_anything_was_done(mender):
    mender.prepare(BUNDLE)
    mender.call("ArtifactRollback")
    assert not mender.failed
    assert mender.device.calls() == []


@pytest.mark.parametrize("healthy", [True, False])
def test_mender_on_a_fresh_device(tmp_path, healthy):
    """Nothing to go back to: after a power cut its trial is ended, and Mender told how that went."""
    device = make_device(tmp_path / "fresh")
    mender = Mender(device, tmp_path / "tree")
    device.plan("apply", Answer(serving=1, cut=True))
    mender.prepare(BUNDLE)
    mender.call("ArtifactInstall")
    make_workspace(device)
    device.plan("apply", Answer(0 if healthy else 3, serving=int(healthy)))
    assert not mender.go_back()
    assert device.calls()[1:] == [resume_call(device)]
    assert dict(mender.states)["ArtifactRollback"] == int(healthy)
    assert device.serving() == int(healthy)


@pytest.mark.parametrize("code", [0, 3])
def test_a_trial_that_is_open_already_is_ended_first(mender, code):
    """Generation 3 is on trial, and 2 serves again where it fails: that is what to go back to then."""
    device = mender.device
    make_workspace(device)
    device.plan("apply", Answer(code, serving=3 if code == 0 else 2), Answer(serving=4, cut=True))
    device.plan("rollback", Answer())
    assert not mender.deploy(BUNDLE)
    calls = device.calls()
    assert [calls[0], calls[2]] == [
        resume_call(device),
        rollback_call(device, 3 if code == 0 else 2),
    ]


def test_nothing_begins_while_an_open_trial_cannot_be_ended(mender):
    make_workspace(mender.device)
    mender.device.plan("apply", Answer(5))
    assert not mender.deploy(BUNDLE)
    assert mender.device.calls() == [resume_call(mender.device)]
    assert dict(mender.states)["ArtifactInstall"] == 5
    assert dict(mender.states)["ArtifactRollback"] == 0


def test_mender_on_a_fresh_device_before_there_is_a_workspace(tmp_path):
    device = make_device(tmp_path / "fresh")
    mender = Mender(device, tmp_path / "tree")
    device.plan("apply", Answer(cut=True), Answer(serving=1))
    assert not mender.deploy(BUNDLE)
    assert dict(mender.states)["ArtifactRollback"] == 0
    assert Mender(device, tmp_path / "tree").deploy(BUNDLE)
    assert [call[0] for call in device.calls()] == ["apply", "apply"]


@pytest.mark.parametrize("payload", [{}, {"a.tar": b"", "b.tar": b""}], ids=["none", "two"])
def test_mender_wants_exactly_one_payload(mender, payload):
    assert not mender.deploy(payload)
    assert mender.device.calls() == []
    assert dict(mender.states)["ArtifactInstall"] == 1


def test_mender_passes_odd_names_on_untouched(mender):
    name = "-o $(touch gone); 'x'.tar"
    mender.device.plan("apply", Answer(serving=4))
    assert mender.deploy({name: b""})
    assert mender.device.calls() == [apply_call(mender.device, mender.tree / "files" / name)]


def test_mender_states_of_later_protocols_are_silent(mender):
    mender.prepare(BUNDLE)
    for state in (
        "ArtifactReboot",
        "ArtifactVerifyReboot",
        "SomethingNew",
        "DownloadWithFileSizes",
    ):
        assert mender.call(state) == ""
        assert not mender.failed
    assert mender.device.calls() == []


def test_a_session_that_holds_the_lock_is_waited_for(mender):
    conf = mender.device.folder / "update.conf"
    text = conf.read_text(encoding="utf-8")
    patient = text.replace('WAIT="0"', 'WAIT="3"\nEDGE_PSLORA_LOCK_STEP=1')
    conf.write_text(patient, encoding="utf-8")
    mender.device.plan("apply", Answer(5), Answer(serving=4))
    assert mender.deploy(BUNDLE)
    assert [call[0] for call in mender.device.calls()] == ["apply"] * 2


@pytest.mark.parametrize("code", [0, 3, 4, 5])
def test_rauc_handler(device, code):
    device.plan("apply", Answer(code))
    mount = device.folder / "mnt" / "rauc bundle"
    done = device.run(SCRIPTS["rauc handler"], more={"RAUC_BUNDLE_MOUNT_POINT": str(mount)})
    assert done.returncode == code
    assert device.calls() == [apply_call(device, mount / "model.tar")]
    # RAUC reads these lines: "handler" or "error" and a text
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("<< ")]
    assert line.split()[1] == ("handler" if code == 0 else "error")
    old = device.run(SCRIPTS["rauc handler"], more={"RAUC_UPDATE_SOURCE": str(mount)})
    assert old.returncode == 0


def test_rauc_install_check(device, tmp_path):
    """From the bundle's mount point; 10 and more is RAUC's "rejected", with the last line as its reason."""
    hook = _copy(SCRIPTS["rauc hook"], tmp_path / "mnt" / "bundle")
    facts = {"RAUC_SYSTEM_COMPATIBLE": "Camera v2", "RAUC_MF_COMPATIBLE": "Camera v2"}
    model = str(hook.parent / "model.tar")
    verify = ["verify", model, "--workspace", str(device.workspace), "--root", "/etc/root.json"]
    assert device.run(hook, "install-check", more=facts).returncode == 0
    assert device.calls() == [verify]
    device.plan("verify", Answer(4))
    refused = device.run(hook, "install-check", more=facts)
    assert refused.returncode == 10
    assert refused.stderr.splitlines()[-1] == "the model in this bundle is not acceptable here"
    assert device.calls() == [verify]
    other = device.run(hook, "install-check", more={**facts, "RAUC_MF_COMPATIBLE": "Door v1"})
    assert other.returncode == 10
    assert other.stderr == "made for 'Door v1', this is 'Camera v2'\n"
    assert device.calls() == []


@pytest.mark.parametrize("code", [0, 3, 4])
def test_rauc_slot_install(device, tmp_path, code):
    hook = _copy(SCRIPTS["rauc hook"], tmp_path / "mnt" / "bundle")
    for name in ("model.tar", str(hook.parent / "model.tar")):  # as versions of RAUC differ
        device.plan("apply", Answer(code))
        facts = {"RAUC_SLOT_CLASS": "model", "RAUC_SLOT_NAME": "model.0", "RAUC_IMAGE_NAME": name}
        assert device.run(hook, "slot-install", more=facts).returncode == code
        assert device.calls() == [apply_call(device, hook.parent / "model.tar")]
    facts = {"RAUC_SLOT_CLASS": "rootfs", "RAUC_IMAGE_NAME": "rootfs.ext4"}
    assert device.run(hook, "slot-install", more=facts).returncode == 1
    assert device.run(hook, "slot-post-install", more=facts).returncode == 0
    assert device.calls() == []


def test_rauc_files_name_each_other():
    manifest = (UPDATERS / "rauc" / "manifest.raucm").read_text(encoding="utf-8")
    assert "filename=hook.sh\nhooks=install-check" in manifest
    assert "[image.model]\nfilename=model.tar\nhooks=install" in manifest
    slots = (UPDATERS / "rauc" / "system.conf").read_text(encoding="utf-8")
    assert "[slot.model.0]" in slots


def _swupdate(device: Device, when: str, data: Path) -> int:
    """SWUpdate pastes path, word and data into one line for the shell; `failure` for shell scripts."""
    return device.run(SCRIPTS["swupdate"], when, str(data)).returncode


def test_swupdate_applies(device):
    bundle = device.folder / "model.tar"
    device.plan("apply", Answer(serving=4))
    assert _swupdate(device, "preinst", bundle) == 0
    assert device.calls() == []
    assert _swupdate(device, "postinst", bundle) == 0
    assert device.calls() == [apply_call(device, bundle)]


@pytest.mark.parametrize("word", ["failure", "postfailure"])
def test_swupdate_goes_back_when_another_part_fails(device, word):
    bundle = device.folder / "model.tar"
    device.plan("apply", Answer(serving=4))
    device.plan("rollback", Answer(serving=3))
    _swupdate(device, "preinst", bundle)
    _swupdate(device, "postinst", bundle)
    assert _swupdate(device, word, bundle) == 0
    assert device.calls()[-1] == rollback_call(device, 3)
    assert _swupdate(device, word, bundle) == 0  # again: nothing is left to do
    assert device.calls() == []
    assert device.serving() == 3


def test_swupdate_refused_by_the_health_check(device):
    bundle = device.folder / "model.tar"
    device.plan("apply", Answer(3))
    _swupdate(device, "preinst", bundle)
    assert _swupdate(device, "postinst", bundle) == 3
    assert _swupdate(device, "failure", bundle) == 0
    assert [call[0] for call in device.calls()] == ["apply"]


def test_swupdate_fails_before_its_turn(device):
    """The note of an update before this one, which succeeded, is not this one's."""
    bundle = device.folder / "model.tar"
    device.plan("apply", Answer(serving=4))
    for when in ("preinst", "postinst"):
        assert _swupdate(device, when, bundle) == 0
    device.calls()
    for when in ("preinst", "failure"):
        assert _swupdate(device, when, bundle) == 0
    assert device.calls() == []
    assert device.serving() == 4


def test_swupdate_starts_again_after_a_power_cut(device):
    """The note of the attempt that was cut is not taken for this one's."""
    bundle = device.folder / "model.tar"
    device.plan("apply", Answer(serving=4, cut=True))
    _swupdate(device, "preinst", bundle)
    assert _swupdate(device, "postinst", bundle) == -signal.SIGKILL
    device.calls()
    assert _swupdate(device, "preinst", bundle) == 0
    assert _swupdate(device, "postinst", bundle) == 0  # apply: nothing to do
    assert [call[0] for call in device.calls()] == ["apply"]


def test_swupdate_description_calls_the_script():
    text = (UPDATERS / "swupdate" / "sw-description").read_text(encoding="utf-8")
    script = text[text.index("scripts:") :]
    assert f'filename = "{SCRIPTS["swupdate"].name}"' in script
    assert 'type = "shellscript"' in script
    path = '"/var/lib/edge-pslora-inbox/model.tar"'
    assert f"path = {path}" in text
    assert f"data = {path}" in script


def _copy(script: Path, folder: Path) -> Path:
    folder.mkdir(parents=True)
    copied = folder / script.name
    copied.write_bytes(script.read_bytes())
    copied.chmod(0o755)
    return copied
