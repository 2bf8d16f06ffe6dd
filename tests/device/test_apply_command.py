"""`verify`, `apply`, `status` and `rollback` as commands: exit codes, one line, one JSON object."""

from __future__ import annotations

import json

import pytest

from edge_pslora.cli.main import main
from edge_pslora.errors import WorkspaceLockedError
from edge_pslora.pipeline.run import adapt
from edge_pslora.signing import extra
from tests.pipeline.pipeline_kit import command_line, digits_npz

pytestmark = pytest.mark.usefixtures("gate_here")


@pytest.fixture
def run(capsys):
    return command_line(capsys)


@pytest.fixture
def say(capsys):
    def said(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([*map(str, arguments)])
        return code, *capsys.readouterr()

    return said


def test_verify_changes_nothing_and_says_what_it_is(made, device, run, say):
    root = made.publisher.root
    found = run("verify", made.two, "--root", root)
    assert found.code == 0
    assert (found.facts["counter"], found.facts["kind"], found.facts["taken"]) == (2, "full", False)
    assert found.facts["device_classes"] == ["default"]
    assert run("verify", made.one, "--workspace", device.path).facts["taken"]
    code, out, err = say("verify", made.two, "--root", root)
    assert (code, err) == (0, "")
    assert "counter 2" in out
    assert "all as signed" in out
    assert run("verify", made.two).code == 2
    missing = run("verify", made.two / "nothing", "--root", root)
    assert (missing.code, missing.facts["error"]) == (4, "BundleError")


def test_apply_and_its_exit_codes(made, device, run, say):
    apply = ("apply", device.path, "--from")
    on_trial = run(*apply, made.two)
    assert (on_trial.code, on_trial.facts["trial"], on_trial.facts["generation"]) == (0, "open", 2)
    out = " ".join(say("status", device.path)[1].split())
    assert "on trial generation 2, 0 health checks; else generation 1" in out
    assert "updates counter 2, for default" in out
    failed = run("apply", device.path, "--health-check", "false", "--health-interval", "0s")
    assert (failed.code, failed.facts["generation"], failed.facts["attempts"]) == (3, 1, 3)
    assert failed.err.count("\n") == 3  # each try
    code, out, err = say(*apply, made.two)
    assert (code, out) == (3, "")
    assert err.count("\n") == 1
    assert "the bundle with counter 2" in say("status", device.path)[1]
    assert run(*apply, made.worse / "nothing").code == 4
    assert run(*apply, made.two, "--health-check", "true", "--no-check").code == 2
    assert run(*apply, made.two, "--health-check", "no-such-program").code == 2
    assert run(*apply, made.two, "--health-timeout", "soon").code == 2
    assert run("apply", device.path / "nothing").code == 2
    assert run("rollback", device.path).code == 2  # the first


def test_the_first_update_on_trial_can_be_taken_back(made, fresh, run, say):
    first = ("apply", fresh.path, "--from", made.one, "--root", fresh.root)
    assert run(*first, "--device-class", "default").facts["trial"] == "open"
    code, out, err = say("rollback", fresh.path)
    assert (code, err) == (0, "")
    assert out == f"Nothing of {fresh.path} is served now: the update on trial was its first.\n"
    nothing = run("rollback", fresh.path, "--to", "1")
    assert nothing.facts["generation"] == 1  # by name it can be had again


def test_adapt_waits_for_the_end_of_a_trial(made, device, tmp_path):
    device.apply(made.two, check=None)
    data = digits_npz(tmp_path / "d.npz", [0, 1], 20)
    with pytest.raises(WorkspaceLockedError, match="health-check") as refused:
        adapt(data, workspace=device.path)
    assert refused.value.exit_code == 5
    assert device.served().number == 2


def test_without_the_extra_one_line_says_what_to_install(made, device, run, monkeypatch):
    monkeypatch.setattr(extra, "find_spec", lambda name: None)
    for command in (("apply", device.path), ("verify", made.one)):
        refused = run(*command)
        assert refused.code == 2
        assert "edge-pslora[signing]" in refused.facts["message"]
    assert run("status", device.path).code == 0
    assert json.dumps(run("status", device.path).facts["updates"]).count("root_version") == 1
