"""Models that are worse here, do not run, or ask for too much: each in the real child process."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from onnx import helper

from edge_pslora.device import local_gate
from edge_pslora.device.anchors import Anchors, score
from edge_pslora.device.local_gate import NotJudgedError, judge
from edge_pslora.errors import EdgePsloraError, GateRefusedError
from edge_pslora.models.encode_image import EncodedImages
from edge_pslora.models.encode_text import EncodedTexts
from edge_pslora.models.image_settings import ImageSettings
from edge_pslora.tasks import TASKS
from edge_pslora.workspace.reading import digest_file
from edge_pslora.workspace.tensors import write_tensors
from edge_pslora.workspace.update_state import read_state
from tests.device.device_kit import LABELS, constant, head, loop_for_ever, write_onnx


def hog():
    return [
        constant("size", np.array([1 << 35], np.int64)),
        helper.make_node("ConstantOfShape", ["size"], ["much"]),
        helper.make_node("ReduceSum", ["much"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["logits"]),
    ]


def test_worse_is_refused_once_and_for_all(made, device, monkeypatch):
    with pytest.raises(GateRefusedError) as refused:
        device.apply(made.worse)
    figures = refused.value.to_dict()
    assert (figures["exit_code"], figures["generation"], figures["anchors"]) == (3, 1, 40)
    assert (figures["anchor_before"], figures["anchor_after"]) == (1.0, 0.0)
    assert device.served().number == 1
    assert (device.path / "staging/refused/model.onnx").exists()
    state = read_state(device.path)
    assert (state.counter, state.failed_counter, state.trial) == (1, 3, None)
    monkeypatch.setattr(local_gate, "judge", lambda *_: pytest.fail("judged again"))
    with pytest.raises(GateRefusedError, match="this device refused"):
        device.apply(made.worse)


@pytest.mark.parametrize(
    ("weight", "nodes", "why"),
    [
        (head(3), None, r"outputs of shape \[32, 3\]"),
        (head() + np.float32("inf"), None, "not finite"),
        (head(), [helper.make_node("MatMul", ["x", "x"], ["logits"])], "MatMul"),
        (head(), [helper.make_node("Nothing", ["x"], ["logits"])], "INVALID_GRAPH"),
    ],
    ids=["width", "inf", "shape", "operator"],
)
def test_what_does_not_run_right(weight, nodes, why, device, tmp_path):
    write_onnx(tmp_path / "model.onnx", weight, nodes=nodes)
    with pytest.raises(GateRefusedError, match=why):
        judge(tmp_path, LABELS, device.workspace.header, device.served())


def test_too_much_of_anything(device, tmp_path, monkeypatch):
    write_onnx(tmp_path / "model.onnx", head(), nodes=hog())
    with pytest.raises(GateRefusedError, match=r"[Mm]emory|alloc"):
        judge(tmp_path, LABELS, device.workspace.header, None)
    monkeypatch.setattr(local_gate, "SECONDS", 1)
    write_onnx(tmp_path / "model.onnx", head(), nodes=loop_for_ever())
    with pytest.raises(NotJudgedError, match="seconds"):
        judge(tmp_path, LABELS, device.workspace.header, None)


def _with_little_memory(folder, monkeypatch, kib):
    """The child begins under such a limit of address space, as a service may be given one."""
    script = folder / "python"
    script.write_text(f'#!/bin/sh\nulimit -v {kib}\nexec "{sys.executable}" "$@"\n')
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))


def test_too_little_memory_here_says_nothing_of_the_model(device, tmp_path, monkeypatch):
    write_onnx(tmp_path / "model.onnx", head())
    with monkeypatch.context() as patch:
        _with_little_memory(tmp_path, patch, 30 << 10)
        with pytest.raises(EdgePsloraError, match="too little to begin") as told:
            judge(tmp_path, LABELS, device.workspace.header, device.served())
    assert told.value.exit_code == 1
    # less than the gate would allow, and enough for a model that is no glutton
    _with_little_memory(tmp_path, monkeypatch, 800 << 10)
    assert judge(tmp_path, LABELS, device.workspace.header, device.served()).after == 1.0
    write_onnx(tmp_path / "model.onnx", head(), nodes=hog())
    with pytest.raises(EdgePsloraError, match="bytes of address space") as told:
        judge(tmp_path, LABELS, device.workspace.header, None)
    assert told.value.exit_code == 1


def test_without_anchors_it_has_to_run(device, tmp_path):
    write_onnx(tmp_path / "model.onnx", head(swapped=True))
    assert judge(tmp_path, LABELS, device.workspace.header, None).samples == 0
    with pytest.raises(GateRefusedError, match="outputs of shape"):
        judge(tmp_path, ("a", "b", "c"), device.workspace.header, None)


def test_anchors_that_are_of_no_use_are_named(device, tmp_path):
    """They must not keep a device from ever taking an update."""
    write_onnx(tmp_path / "model.onnx", head(swapped=True))
    serving = device.served()
    anchor = serving.path / "anchor.safetensors"
    write_tensors(anchor, {"input.x": np.zeros((3, 4), np.float32)})
    files = {**serving.manifest.files, "anchor.safetensors": digest_file(anchor)}
    serving = replace(serving, manifest=replace(serving.manifest, files=files))
    judged = judge(tmp_path, LABELS, device.workspace.header, serving)
    assert judged.samples == 0
    assert "anchor.safetensors" in judged.note


def test_new_labels_do_not_count_as_forgetting(device, tmp_path):
    """A third label that wins everywhere: the two that were known still compete alone."""
    weight = head(3)
    weight[2] = 0
    weight[2, :4] = 5
    write_onnx(tmp_path / "model.onnx", weight)
    judged = judge(tmp_path, (*LABELS, "c"), device.workspace.header, device.served())
    assert (judged.samples, judged.before, judged.after) == (40, 1.0, 1.0)


@pytest.mark.parametrize("task_type", ["classification", "multilabel", "regression"])
def test_scores_are_those_of_the_task(task_type):
    rng = np.random.default_rng(1)
    outputs = rng.normal(size=(70, 1 if task_type == "regression" else 3)).astype(np.float32)
    labels = ("value",) if task_type == "regression" else ("a", "b", "c")
    names = {
        "classification": np.array(["a", "b", "d"]),
        "multilabel": np.array(["", "a", "c\x1fb"]),
    }
    targets = (
        rng.normal(size=70).astype(np.float32)
        if task_type == "regression"
        else rng.choice(names[task_type], 70)
    )
    anchors = Anchors({"x": np.arange(70, dtype=np.float32)[:, None]}, targets)
    found = score(lambda b: outputs[b["x"][:, 0].astype(int)], anchors, task_type, labels, labels)
    scale = float(targets.std()) if task_type == "regression" else 1.0
    expected = TASKS[task_type].measure(outputs, targets, {}, labels, scale)["score"]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_texts_and_pictures_get_the_inputs_that_torch_got():
    rng = np.random.default_rng(2)
    lengths = rng.integers(1, 9, size=40)
    offsets = np.concatenate([[0], lengths.cumsum()]).astype(np.int64)
    ids = rng.integers(1, 50, size=offsets[-1]).astype(np.int32)
    texts = EncodedTexts(ids, offsets, 0, ids % 2)
    every = np.arange(40)
    anchors = Anchors(texts.to_arrays(every), np.array(["a"] * 40))
    assert anchors.usable
    for rows, inputs in anchors.batches():
        wanted = texts.batch(rows)
        assert wanted.keys() == inputs.keys()
        for name, value in wanted.items():
            np.testing.assert_array_equal(inputs[name], value.numpy())
    settings = ImageSettings(4, 4, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    pictures = EncodedImages(rng.integers(0, 256, size=(9, 3, 4, 4)).astype(np.uint8), settings)
    scaling = (np.float32(settings.mean), np.float32(settings.std))
    anchors = Anchors(pictures.to_arrays(np.arange(9)), np.array(["a"] * 9), scaling)
    ((rows, inputs),) = anchors.batches()
    torch.testing.assert_close(
        torch.from_numpy(inputs["pixel_values"]), pictures.batch(rows)["pixel_values"]
    )
    waves = {"waves": np.zeros((2, 5), np.int16), "lengths": np.ones(2, np.int32)}
    assert not Anchors(waves, np.array(["a", "b"])).usable
