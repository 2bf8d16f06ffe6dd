"""`replay`: its lines, its JSON, its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge_pslora.cli.main import main
from tests.update.delta_kit import ship


def test_lines_and_json_say_what_was_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shipment = ship(tmp_path)
    out = tmp_path / "out.safetensors"
    arguments = ["replay", str(shipment.delta), "--base", str(shipment.base)]
    arguments += ["--parent", str(shipment.parent), "--out", str(out)]
    assert main([*arguments, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert out.read_bytes() == shipment.wanted
    assert (facts["generation"], facts["parent"], facts["onnx"]) == (2, 1, None)
    assert facts["labels"] == ["καί", "no"]
    assert facts["sha256"] == shipment.described.model.sha256
    assert facts["bytes"] == len(shipment.wanted)
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "2, from generation 1" in text
    assert "7 replayed by constructive, 2 replaced" in text


def test_each_refusal_has_its_exit_code_and_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shipment = ship(tmp_path)
    out = tmp_path / "out.safetensors"
    start = ["replay", str(shipment.delta), "--out", str(out), "--base"]
    parent = ["--parent", str(shipment.parent)]
    wrong = [
        ([*start, str(shipment.base)], 2),  # no parent
        ([*start, str(shipment.parent), *parent], 4),
        ([*start, str(shipment.base), "--parent", str(shipment.base)], 4),
        ([*start, str(tmp_path / "gone"), *parent], 4),
        (["replay", str(shipment.base), "--base", str(shipment.base), "--out", str(out)], 4),
        ([*start, str(shipment.base), *parent, "--out", str(shipment.base)], 2),
        (["replay", str(shipment.delta), "--out", str(out)], 2),  # no base
    ]
    for arguments, code in wrong:
        assert main([*arguments, "--json"]) == code
        assert json.loads(capsys.readouterr().out)["exit_code"] == code
        assert main(arguments) == code
        assert capsys.readouterr().err.count("\n") == 1
        assert not out.exists()
