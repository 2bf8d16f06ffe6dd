"""`inspect`: lines, JSON, exit codes, and that nothing heavy is loaded for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge_pslora.cli.main import main
from tests.pipeline.hf_kit import bert_folder

HEAVY = {"torch", "onnx", "onnxruntime", "transformers"}
RUN = (
    "import sys; from edge_pslora.cli.main import main; code = main(sys.argv[1:]);"
    "sys.stderr.write(','.join({m.split('.')[0] for m in sys.modules})); sys.exit(code)"
)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "t.csv"
    rows = [f"{i},{i % 5},{'yes' if i % 3 else 'no'}" for i in range(30)]
    path.write_text("\n".join(["size,weight,answer", *rows, "x,1,no"]) + "\n")
    return path


def _json(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert main(["inspect", *map(str, arguments), "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.count("\n") == 1
    facts: dict[str, Any] = json.loads(out)
    return facts


def test_data_in_lines_and_as_json(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(table)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"Data: {table}"
    assert "  train     30 rows, 2 classes: yes (20), no (10)" in lines
    assert "  columns   2: size, weight" in lines
    assert "            t.csv:32: column 'size' holds 'x', not a number" in lines
    facts = _json(capsys, table)
    assert facts["what"] == "data"
    assert facts["parts"]["train"] == {"rows": 30, "classes": {"yes": 20, "no": 10}}
    assert facts["rejected"] == 1
    facts = _json(capsys, table, "--label-column", "2", "--missing", "4")
    assert facts["label"] == "answer"
    assert facts["missing"] == {"size": 1, "weight": 6}


def test_a_model_in_lines_and_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = bert_folder(tmp_path / "m", ("up", "down"))
    assert main(["inspect", str(folder), "--rank", "2"]) == 0
    out = capsys.readouterr().out
    assert "  family  bert (BertForSequenceClassification)" in out
    assert "  labels  2: up, down" in out
    assert "  takes   text, up to 24 tokens" in out
    assert "          2 x bert.encoder.layer.*.attention.self.query" in out
    facts = _json(capsys, folder, "--rank", "2", "--target", "query", "--max-length", "8")
    assert facts["what"] == "model"
    assert facts["trained"] == 2 * 2 * (32 + 32)
    assert facts["input_limit"] == 8
    assert [target["shape"] for target in facts["targets"]] == [[32, 32]] * 2


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["gone.csv"], 4, "nothing there"),
        (["t.csv", "--label-column", "none"], 4, "a column 'none'"),
        (["t.csv", "--rank", "0"], 2, "--rank"),
        (["t.csv", "--weights", "w.safetensors"], 2, "--weights"),
        (["no_such_package:net"], 4, "no_such_package"),
        ([], 2, "MODEL|DATA"),
    ],
    ids=["gone", "column", "rank", "weights", "factory", "nothing"],
)
def test_exit_codes(
    table: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(table.parent)
    assert main(["inspect", *arguments]) == code
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert said in err
    assert main(["inspect", *arguments, "--json"]) == code
    assert json.loads(capsys.readouterr().out)["exit_code"] == code


def test_a_workspace_is_for_status(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(workspace)]) == 4
    assert f"run: edge-pslora status {workspace}" in capsys.readouterr().err


def test_a_folder_of_a_model_and_data_need_no_torch(tmp_path: Path, table: Path) -> None:
    folder = bert_folder(tmp_path / "m")
    for source in (folder, folder / "model.safetensors", table, "auto"):
        done = subprocess.run(
            [sys.executable, "-c", RUN, "inspect", str(source)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert HEAVY.isdisjoint(done.stderr.split("\n")[-1].split(","))
