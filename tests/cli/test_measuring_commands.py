"""`eval` and `demo`: what they call and what they print (the measuring itself is tested there)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from edge_pslora.cli.main import main


class Facts:
    """A result that is its own dictionary."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self._facts = facts

    def lines(self) -> list[str]:
        return ["a table", "with\x1bnames"]

    def to_dict(self) -> dict[str, Any]:
        return self._facts


EVALUATION = {
    "generation": 3,
    "samples": 50,
    "metric": "accuracy",
    "accuracy": 0.82,
    "figures": {"accuracy": 0.82, "perplexity": 12.3},
    "per_label": {"cat": 0.9, "a very long label\x1b": 0.74},
    "unknown_labels": ("cow",),
    "rejected": 2,
    "agreement": 1.0,
    "max_abs_error": 1e-6,
}
DEMO = {"average": {"PS-LoRA": 0.945}}


def _replace(monkeypatch: pytest.MonkeyPatch, name: str, function: str, value: object) -> None:
    module = ModuleType(name)
    setattr(module, function, value)
    monkeypatch.setitem(sys.modules, name, module)


def test_eval(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[tuple[Any, ...]] = []

    def evaluate(workspace: Path, data: Path, **options: Any) -> Facts:
        read = options["read"]
        calls.append((workspace, data, options["generation"], read.label_column))
        return Facts(EVALUATION)

    _replace(monkeypatch, "edge_pslora.evaluation", "evaluate", evaluate)
    arguments = ["eval", "w", "d.csv", "--generation", "3", "--label-column", "y"]
    assert main(arguments) == 0
    assert calls == [(Path("w"), Path("d.csv"), 3, "y")]
    out = capsys.readouterr().out
    assert "Generation 3 on 50 samples" in out
    assert "0.820" in out
    assert "perplexity     12.3" in out
    assert "a very long label\\x1b" in out
    assert "never learned  1: cow" in out
    assert "2 rows" in out
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == EVALUATION | {"unknown_labels": ["cow"]}


def test_demo(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    outs: list[Path] = []

    def run_demo(out: Path, progress: Any) -> Facts:
        progress.start("session", 1)
        progress.advance(1)
        progress.finish()
        outs.append(out)
        return Facts(DEMO)

    _replace(monkeypatch, "edge_pslora.demo", "run_demo", run_demo)
    assert main(["demo"]) == 0
    assert capsys.readouterr().out == "a table\nwith\\x1bnames\n"
    assert outs == [Path("edge-pslora-demo")]
    assert main(["demo", "--out", "x", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == DEMO
    assert outs[-1] == Path("x")
