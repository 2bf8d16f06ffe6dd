"""`edge-pslora compare` on small tables: the table, the sentence, the JSON, and what it refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from edge_pslora.cli.main import main
from edge_pslora.compare.results import read
from tests.tiny import blobs

METHODS = ("--methods", "sequential,frozen,pslora,joint")


def _table(path: Path, labels: tuple[str, ...], seed: int, features: int = 6) -> Path:
    rows, names = blobs(labels, n=20, features=features, seed=seed)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*(f"x{i}" for i in range(features)), "label"])
        writer.writerows([[*row, name] for row, name in zip(rows.tolist(), names, strict=True)])
    return path


@pytest.fixture
def days(tmp_path: Path) -> list[str]:
    groups = (("a", "b"), ("c", "d"))
    return [str(_table(tmp_path / f"day{i}.csv", g, i)) for i, g in enumerate(groups)]


def test_a_table_and_one_sentence(
    days: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "results.jsonl"
    assert main(["compare", *days, *METHODS, "--epochs", "1", "--out", str(out), "-q"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 sessions, class-incremental: day0 (32), day1 (32)"
    assert [line.partition(":")[0] for line in lines[2:6]] == [
        "sequential",
        "frozen",
        "pslora",
        "joint",
    ]
    assert lines[6].startswith("Use ")
    assert lines[6].endswith("(one seed: a hint, no proof).")
    assert len(lines) == 7
    assert [r.method for r in read(out)] == ["sequential", "frozen", "pslora", "joint"]


def test_one_json_object(days: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compare", *days, "--methods", "frozen", "--seeds", "2", "--json", "-q"]
    assert main([*command, "--holdout", "0.5"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["tasks"] == ["day0", "day1"]
    assert facts["samples"] == [20, 20]
    assert [r["seed"] for r in facts["results"]] == [0, 1]
    assert facts["recommendation"].startswith("Use frozen")
    assert main(command) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["samples"] == [32, 32]


@pytest.mark.parametrize(
    ("more", "code", "wanted"),
    [
        (["--methods", "nothing"], 2, "found nothing"),
        (["--methods", "joint"], 2, "a method among them that keeps no training samples"),
        (["--holdout", "1"], 2, "--holdout: expected a share between 0 and 1; found 1"),
        (["--task-type", "multilabel"], 2, "one class for each sample"),
        (["--model", "no/such"], 4, "no such folder"),
        (["other"], 4, "table data of 6 numbers a sample, as in"),
        (["missing.csv"], 4, "missing.csv"),
    ],
)
def test_what_is_refused_is_one_line(
    more: list[str],
    code: int,
    wanted: str,
    days: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = str(_table(tmp_path / "wide.csv", ("a", "b"), 5, features=7))
    given = [other if item == "other" else item for item in more]
    assert main(["compare", *days, *given, "-q"]) == code
    said = capsys.readouterr()
    assert wanted in said.err
    assert len(said.err.splitlines()) == 1
    assert said.out == ""


def test_one_session_is_no_sequence(days: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", days[0], "-q"]) == 2
    assert "two sessions or more" in capsys.readouterr().err


def test_all_methods_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("  pslora ") for line in lines)
    assert any("O-LoRA; arXiv 2310.14152" in line for line in lines)


def test_sessions_of_one_name_are_told_apart() -> None:
    from edge_pslora.compare.own_data import _unique

    assert _unique(["data", "data", "other", "data"]) == ("data", "data (2)", "other", "data (3)")
