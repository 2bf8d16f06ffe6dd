"""`make bench-export` on a tiny workspace: each part once, and what its figures are made of."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from benchmarks import export
from benchmarks.export_forms import FORMS, TORCH, FormRun
from benchmarks.export_subjects import Size, Subject
from benchmarks.export_timing import in_turn, ratios
from edge_pslora import AdaptConfig, TrainConfig, adapt
from edge_pslora.config import GateConfig
from tests.pipeline import pipeline_kit as kit

CONFIG = AdaptConfig(train=TrainConfig(epochs=1), gate=GateConfig(force=True))
SHORT = tuple(
    form for form in FORMS if form.name in ("onnx", "onnx int8", "ort-adapter", "safetensors")
)


def tiny(work: Path, size: Size) -> Subject:
    """Two sessions on a few digits, in this process."""
    for number, labels in enumerate(((0, 1), (2, 3))):
        data = kit.digits_npz(work / f"{number}.npz", labels, size.train)
        adapt(data, model="auto" if number == 0 else None, workspace=work / "w", config=CONFIG)
    return Subject("tiny", work / "w")


def test_a_run_measures_every_part_and_keeps_to_the_contract(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "FORMS", SHORT)
    monkeypatch.setattr(export, "QUANTIZED", ("onnx int8",))
    arguments = ["--samples", "60", "20", "--rounds", "3", "--repeats", "1"]
    assert export.main(arguments, subjects={"tiny": tiny}, out=tmp_path) == 0
    content = json.loads((tmp_path / "export.json").read_text())
    assert {"machine", "date", "commit", "command", "forms", "rows"} <= set(content)
    forms = {run["form"]: run for run in content["forms"]["tiny"]}
    assert list(forms) == [TORCH, *(form.name for form in SHORT)]
    assert forms["onnx"]["bytes"] > forms["onnx int8"]["bytes"] > 0
    assert forms["onnx"]["load"] > 0 < forms["onnx"]["latency"]
    assert forms["ort-adapter"]["latency"] > 0
    assert forms["safetensors"]["latency"] is None
    rows = {row["figure"]: row for row in content["rows"]}
    assert rows["tiny: ONNX against torch, largest difference"]["met"]
    assert rows["tiny: ONNX against torch, same predictions"]["measured"] == 1
    assert 0 < rows["tiny: patch, one file / full export"]["measured"] < 1
    assert rows["tiny: delta (int12) / model.safetensors"]["target"] is None  # MiniLM's
    assert "one sample ms" in capsys.readouterr().out


def test_an_export_that_is_refused_is_said_and_has_no_figure(capsys) -> None:
    refused = FormRun("onnx int8", refused="a drop of 3 points")
    assert export._quantized_rows("tiny", refused, FormRun("onnx"), held=True) == []
    assert "a drop of 3 points" in capsys.readouterr().out
    table = export._forms_table("tiny", [FormRun(TORCH, latency=2.0), refused])
    assert table.splitlines()[-1].split() == ["onnx", "int8", "refused"]


def test_calls_are_timed_in_an_order_of_their_own_each_round(monkeypatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr("benchmarks.export_timing.time.perf_counter", lambda: next(clock))
    seen: list[str] = []
    taken = in_turn({name: lambda name=name: seen.append(name) for name in "abc"}, 9, warm_up=1)
    assert {name: len(values) for name, values in taken.items()} == {"a": 9, "b": 9, "c": 9}
    rounds = {tuple(seen[i : i + 3]) for i in range(0, 30, 3)}
    assert len(rounds) > 2
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert ratios({"a": [2.0, 3.0], "b": [1.0, 2.0]}, "a", "b") == [2.0, 1.5]
