"""`status`, `rollback` and `report` on a real workspace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edge_pslora.cli.main import main
from edge_pslora.workspace.lock import writer_lock


def _json(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    facts = json.loads(capsys.readouterr().out)
    assert isinstance(facts, dict)
    return facts


def test_status_shows_what_is_served(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(workspace), "--json"]) == 0
    facts = _json(capsys)
    assert (facts["generation"], facts["task"], facts["labels"]) == (2, "second", ["cat", "dog"])
    assert main(["status", str(workspace)]) == 0
    out = capsys.readouterr().out
    assert "generation 2, task second" in out
    assert "2: cat, dog" in out
    assert "* 2" in out
    assert "0.750 on its task" in out


def test_status_of_an_intact_workspace_verifies(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", str(workspace), "--verify"]) == 0
    assert "damaged" not in capsys.readouterr().out


def test_damage_is_exit_4(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = workspace / "generations" / "000001" / "report.html"
    data = bytearray(page.read_bytes())
    data[0] ^= 1
    page.write_bytes(data)
    assert main(["status", str(workspace)]) == 0
    capsys.readouterr()
    assert main(["status", str(workspace), "--verify"]) == 4
    assert "report.html" in capsys.readouterr().out
    assert main(["status", str(workspace), "--verify", "--json"]) == 4
    assert len(_json(capsys)["damage"]) == 1


def test_rollback_serves_the_parent_and_deletes_nothing(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(p for p in workspace.rglob("*") if "generations" in p.parts)
    assert main(["rollback", str(workspace)]) == 0
    assert "Generation 1 of" in capsys.readouterr().out
    assert main(["status", str(workspace), "--json"]) == 0
    assert _json(capsys)["generation"] == 1
    assert main(["rollback", str(workspace), "--to", "2", "--json"]) == 0
    assert _json(capsys)["generation"] == 2
    assert sorted(p for p in workspace.rglob("*") if "generations" in p.parts) == before


@pytest.mark.parametrize(("to", "code"), [("3", 4), ("99999999999999999999", 4)])
def test_a_generation_that_is_not_there_changes_nothing(
    workspace: Path, capsys: pytest.CaptureFixture[str], to: str, code: int
) -> None:
    assert main(["rollback", str(workspace), "--to", to]) == code
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["status", str(workspace), "--json"]) == 0
    assert _json(capsys)["generation"] == 2


def test_nothing_before_the_first_is_wrong_use(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rollback", str(workspace)]) == 0
    assert main(["rollback", str(workspace)]) == 2


def test_rollback_of_a_locked_workspace_is_exit_5(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with writer_lock(workspace):
        assert main(["rollback", str(workspace)]) == 5
        assert main(["status", str(workspace)]) == 0


@pytest.mark.parametrize("command", ["status", "rollback", "report"])
def test_no_workspace_is_exit_4_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert main([command, str(tmp_path / "none")]) == 4
    assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_report_makes_a_page_of_all_generations(
    workspace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    before = {p: p.read_bytes() for p in workspace.rglob("*") if p.is_file()}
    assert main(["report", str(workspace)]) == 0
    page = Path(capsys.readouterr().out.strip())
    assert page == Path("edge-pslora-report.html")
    text = page.read_text(encoding="utf-8")
    assert "first" in text
    assert "accuracy 75.0 % on its held-out samples" in text
    assert {p: p.read_bytes() for p in workspace.rglob("*") if p.is_file()} == before


def test_report_gives_the_page_of_a_generation(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(workspace), "--generation", "2"]) == 0
    page = Path(capsys.readouterr().out.strip())
    assert page.read_text(encoding="utf-8") == "<p>second"
    copy = tmp_path / "copy.html"
    assert main(["report", str(workspace), "--generation", "1", "--out", str(copy)]) == 0
    assert copy.read_text(encoding="utf-8") == "<p>first"
    assert main(["report", str(workspace), "--out", str(tmp_path / "no" / "x.html")]) == 1
