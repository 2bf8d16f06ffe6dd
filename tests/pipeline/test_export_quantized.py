"""`export --quantize`: what is written, measured and refused, and that nothing else is touched."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edge_pslora import adapt
from edge_pslora.exporters.onnx_write import write_model
from edge_pslora.pipeline import export_quantized, quantized_trial
from tests.pipeline import hf_kit
from tests.pipeline import pipeline_kit as kit

Run = Callable[..., kit.Outcome]
KINDS = ("int8", "int8-static")
WILD = "tests.pipeline.wild_models"


def _adapted(folder: Path, model: str) -> Path:
    data = kit.digits_npz(folder / "d.npz", (0, 1, 2, 3), 300)
    assert adapt(data, model=model, workspace=folder / "w").promoted
    return folder / "w"


@pytest.fixture(scope="session")
def one_wild(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _adapted(tmp_path_factory.mktemp("one wild"), f"{WILD}:one_wild")


@pytest.fixture(scope="session")
def all_wild(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _adapted(tmp_path_factory.mktemp("all wild"), f"{WILD}:all_wild")


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny transformer."""
    folder = tmp_path_factory.mktemp("texts")
    data = kit.write_jsonl(folder / "d.jsonl", list(kit.TOPICS))
    base = hf_kit.bert_folder(folder / "bert")
    assert adapt(data, model=str(base), workspace=folder / "w").promoted
    return folder / "w"


def _export(run: Run, workspace: Path, out: Path, kind: str, *more: Any) -> kit.Outcome:
    return run("export", workspace, out, "--format", "onnx", "--quantize", kind, *more)


def _operators(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


def _metadata(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


DEVICE = """
import json, sys
import numpy as np, onnxruntime
answers = []
for path in sys.argv[1:]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    for batch in (1, 3):
        feed = {}
        for value in session.get_inputs():
            shape = [batch, *(n if isinstance(n, int) else 5 for n in value.shape[1:])]
            whole = "int" in value.type
            x = rng.integers(1, 5, shape) if whole else rng.random(shape, np.float32)
            feed[value.name] = x
        logits = session.run(None, feed)[0]
        answers.append([len(logits), bool(np.isfinite(logits).all())])
print(json.dumps([answers, sorted({"torch", "edge_pslora"} & set(sys.modules))]))
"""


def test_three_kinds_of_network_both_ways_run_on_a_device(
    two_sessions, image_workspace, texts, run, tmp_path, monkeypatch
):
    elsewhere = tmp_path / "tmp"
    elsewhere.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    written = []
    for name, workspace in (
        ("rows", two_sessions),
        ("pictures", image_workspace),
        ("texts", texts),
    ):
        before = kit.snapshot(workspace)
        for kind in KINDS:
            out = tmp_path / "out" / f"{name}-{kind}"
            out.parent.mkdir(exist_ok=True)
            done = _export(run, workspace, out, kind, "--max-drop", 0.05)
            assert done.code == 0, done
            facts, timings = done.facts["quantization"], done.facts["timings"]
            assert facts["drop"] == pytest.approx(facts["before"] - facts["after"])
            assert facts["drop"] <= 0.05
            assert facts["samples"] >= 4
            assert facts["size_ratio"] < 1
            assert timings["speedup_low"] <= timings["speedup"] <= timings["speedup_high"]
            assert any("times as fast" in note for note in done.facts["notes"])
            operators = _operators(out / "model.onnx")
            assert "ConvInteger" not in operators
            assert ("MatMulInteger" in operators) == (kind == "int8")
            metadata = _metadata(out / "model.onnx")
            assert json.loads(metadata["pslora.quantization"])["kind"] == kind
            assert json.loads(metadata["pslora.labels"])
            nodes = onnx.load(out / "model.onnx").graph.node
            assert not any(node.metadata_props or node.doc_string for node in nodes)
            assert "pslora.layout" not in metadata, (
                "its weights are no longer those of the state dict"
            )
            record = json.loads((out / "export.json").read_text())
            assert "timings" not in record
            assert record["quantization"] == facts
            written.append(str(out / "model.onnx"))
        assert kit.snapshot(workspace) == before
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        f"{name}-{kind}" for name in ("rows", "pictures", "texts") for kind in KINDS
    )
    assert list(elsewhere.iterdir()) == []
    monkeypatch.undo()
    done = subprocess.run(
        [sys.executable, "-c", DEVICE, *written], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    answers, loaded = json.loads(done.stdout)
    assert answers == [[1, True], [3, True]] * len(written)
    assert loaded == []


def test_the_same_export_gives_the_same_bytes_and_the_opset_is_free(two_sessions, run, tmp_path):
    for name in ("a", "b"):
        assert _export(run, two_sessions, tmp_path / name, "int8-static", "--max-drop", 1).code == 0
    assert kit.snapshot(tmp_path / "a") == kit.snapshot(tmp_path / "b")
    more = ("--overwrite", "--max-drop", 1, "--opset", 21, "--external-data")
    assert _export(run, two_sessions, tmp_path / "b", "int8", *more).code == 0
    model = onnx.load(tmp_path / "b" / "model.onnx", load_external_data=False)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 21)]
    assert (tmp_path / "b" / "model.onnx_data").is_file()


@pytest.mark.parametrize("kind", KINDS)
def test_exactly_the_layer_that_int8_cannot_hold_is_left_in_float(kind, one_wild, run, tmp_path):
    done = _export(run, one_wild, tmp_path / "out", kind, "--max-drop", 0.02)
    assert done.code == 0, done
    facts = done.facts["quantization"]
    # the head is left out from the start: 256 of 13,056 weights
    assert facts["left_in_float"] == ["2.linear", "head"]
    assert (facts["weight_bits"], facts["layers"], facts["ratings"]) == (8, 4, 3)
    assert facts["before"] > 0.7
    assert facts["drop"] <= 0.02
    everything = _export(run, one_wild, tmp_path / "all", kind, "--max-drop", 1)
    assert everything.facts["quantization"]["left_in_float"] == ["head"]
    assert everything.facts["quantization"]["drop"] > 0.3, "the planted fault is one"


def test_a_model_that_loses_whatever_is_left_in_float_is_refused(all_wild, run, tmp_path):
    (tmp_path / "out").mkdir()
    before = kit.snapshot(all_wild)
    done = _export(run, all_wild, tmp_path / "out" / "int8", "int8", "--max-drop", 0.02)
    assert (done.code, done.facts["error"]) == (3, "GateRefusedError"), done
    assert "nothing was written" in done.facts["found"]
    assert "--max-drop" in done.facts["remedy"]
    assert list((tmp_path / "out").iterdir()) == []
    assert kit.snapshot(all_wild) == before


def test_a_file_that_was_not_what_was_judged_is_not_published(
    two_sessions, run, tmp_path, monkeypatch
):
    def broken(model, path, external_data):  # type: ignore[no-untyped-def]
        for value in model.graph.initializers.values():
            if value.const_value.dtype == ir.DataType.INT8:
                value.const_value = ir.tensor(0 * value.const_value.numpy(), name=value.name)
        return write_model(model, path, external_data)

    monkeypatch.setattr(export_quantized, "write_model", broken)
    done = _export(run, two_sessions, tmp_path / "out", "int8", "--max-drop", 0.5)
    assert (done.code, done.facts["error"]) == (1, "EdgePsloraError")
    assert "what was judged" in done.facts["expected"]
    assert not (tmp_path / "out").exists()


def test_a_search_without_an_end_is_given_up(one_wild, run, tmp_path, monkeypatch):
    monkeypatch.setattr(quantized_trial, "SEARCH_SECONDS", -1.0)
    done = _export(run, one_wild, tmp_path / "out", "int8")
    assert (done.code, done.facts["error"]) == (6, "BudgetError")
    assert not (tmp_path / "out").exists()


def test_given_samples_are_the_ones_that_are_judged(two_sessions, run, tmp_path):
    data = kit.digits_npz(tmp_path / "test.npz", range(7), 1200, part="test")
    count = min(len(np.load(data, allow_pickle=False)["y"]), quantized_trial.MOST_JUDGED)
    done = _export(run, two_sessions, tmp_path / "out", "int8", "--data", data, "--max-drop", 0.05)
    assert done.code == 0, done
    assert done.facts["quantization"]["samples"] == count
