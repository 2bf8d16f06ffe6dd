"""int8 on graphs written by hand: what is prepared, which nodes change, the same bytes, no torch."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_pslora.errors import EdgePsloraError, ModelError
from edge_pslora.exporters import onnx_quantize
from edge_pslora.exporters.onnx_latency import ROUNDS, side_by_side
from edge_pslora.exporters.onnx_prepare import prepare
from edge_pslora.exporters.onnx_quantize import prepare_file, quantize
from edge_pslora.exporters.run import run_onnx

ROOT = Path(__file__).resolve().parents[2]
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def conv_model() -> onnx.ModelProto:
    """Pad, Conv, BatchNormalization, Clip twice (a shared bias of zeros, depthwise), mean, Gemm."""
    rng = np.random.default_rng(0)
    weights = {
        "backbone.model.first.weight": rng.normal(size=(16, 3, 3, 3)),
        "backbone.model.deep.weight": rng.normal(size=(16, 1, 3, 3)),
        "head.weight": rng.normal(size=(3, 16)),
        "head.bias": rng.normal(size=3),
        "zeros": np.zeros(16),
        "low": np.array(0.0),
        "high": np.array(6.0),
    }
    for name in ("bn1", "bn2"):
        weights |= {f"{name}.{part}": rng.uniform(0.5, 1.5, 16) for part in "wbmv"}
    whole = {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "axes": np.array([2, 3])}
    nodes, x = [], "x"
    for number, (weight, groups) in enumerate((("first", 1), ("deep", 16)), start=1):
        if number == 1:
            nodes.append(helper.make_node("Pad", [x, "pads"], ["padded"]))
            x = "padded"
        more = {"group": groups} if groups > 1 else {}
        pads = {} if number == 1 else {"pads": [1, 1, 1, 1]}
        names = [f"backbone.model.{weight}.weight", "zeros"]
        nodes.append(helper.make_node("Conv", [x, *names], [f"c{number}"], **more, **pads))
        batch_norm = [f"bn{number}.{part}" for part in "wbmv"]
        nodes.append(
            helper.make_node("BatchNormalization", [f"c{number}", *batch_norm], [f"b{number}"])
        )
        nodes.append(helper.make_node("Clip", [f"b{number}", "low", "high"], [f"r{number}"]))
        x = f"r{number}"
    nodes.append(helper.make_node("ReduceMean", [x, "axes"], ["mean"], keepdims=0))
    nodes.append(helper.make_node("Gemm", ["mean", "head.weight", "head.bias"], ["y"], transB=1))
    inputs = [helper.make_tensor_value_info("x", FLOAT, ["batch", 3, 12, 12])]
    return _model(nodes, inputs, weights, whole, classes=3)


def text_model() -> onnx.ModelProto:
    """An embedding that is also a MatMul's weight, two Linear layers, a Gemm with a factor, a head."""
    rng = np.random.default_rng(1)
    weights = {
        "backbone.model.embed.weight": rng.normal(size=(40, 24)),
        "backbone.model.up.weight": rng.normal(size=(32, 24)),
        "backbone.model.up.bias": rng.normal(size=32),
        "backbone.model.down.weight": rng.normal(size=(24, 32)),
        "backbone.model.odd.weight": rng.normal(size=(40, 8)),
        "odd.bias": rng.normal(size=8),
        "head.weight": rng.normal(size=(4, 8)),
        "head.bias": rng.normal(size=4),
    }
    nodes = [
        helper.make_node("Gather", ["backbone.model.embed.weight", "x"], ["e"]),
        helper.make_node("Transpose", ["backbone.model.up.weight"], ["up.t"], perm=[1, 0]),
        helper.make_node("MatMul", ["e", "up.t"], ["u"]),
        helper.make_node("Add", ["u", "backbone.model.up.bias"], ["ub"]),
        helper.make_node("Relu", ["ub"], ["ur"]),
        helper.make_node("Transpose", ["backbone.model.down.weight"], ["down.t"], perm=[1, 0]),
        helper.make_node("MatMul", ["ur", "down.t"], ["d"]),
        helper.make_node("Transpose", ["backbone.model.embed.weight"], ["embed.t"], perm=[1, 0]),
        helper.make_node("MatMul", ["d", "embed.t"], ["back"]),
        helper.make_node("ReduceMean", ["back", "one"], ["m"], keepdims=0),
        helper.make_node("Gemm", ["m", "backbone.model.odd.weight", "odd.bias"], ["o"], alpha=0.5),
        helper.make_node("Gemm", ["o", "head.weight", "head.bias"], ["y"], transB=1),
    ]
    inputs = [helper.make_tensor_value_info("x", INT64, ["batch", "sequence"])]
    return _model(nodes, inputs, weights, {"one": np.array([1])}, classes=4)


def _model(nodes, inputs, weights, whole, classes):  # type: ignore[no-untyped-def]
    constants = [
        *(numpy_helper.from_array(a.astype(np.float32), n) for n, a in weights.items()),
        *(numpy_helper.from_array(a.astype(np.int64), n) for n, a in whole.items()),
    ]
    output = helper.make_tensor_value_info("y", FLOAT, ["batch", classes])
    graph = helper.make_graph(nodes, "g", inputs, [output], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {"pslora.labels": "[]"})
    onnx.checker.check_model(model, full_check=True)
    return model


MODELS = {"conv": conv_model, "text": text_model}
LAYERS = {
    "conv": {"first": "Conv", "deep": "Conv", "head": "MatMul"},
    "text": {
        "embed": "Gather",
        "up": "MatMul",
        "down": "MatMul",
        "embed_9": "MatMul",
        "head": "MatMul",
    },
}


def samples(kind: str, count: int = 12) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(2)
    if kind == "conv":
        return [{"x": rng.normal(size=(1, 3, 12, 12)).astype(np.float32)} for _ in range(count)]
    return [{"x": rng.integers(0, 40, (1, 3 + k % 4))} for k in range(count)]


def prepared(kind: str, folder: Path) -> onnx_quantize.Prepared:
    onnx.save(MODELS[kind](), folder / "float.onnx")
    return prepare_file(folder / "float.onnx", folder)


def distance(first: Path, second: Path, kind: str) -> float:
    pairs = [(run_onnx(first, b), run_onnx(second, b)) for b in samples(kind)]
    a, b = (np.concatenate(outputs) for outputs in zip(*pairs, strict=True))
    return float(np.linalg.norm(a - b) / np.linalg.norm(a))


def operators(path: Path) -> Counter[str]:
    model = onnx.load(path)
    assert {o.domain for o in model.opset_import} == {""}, "operators of the ONNX standard alone"
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize("kind", ["conv", "text"])
def test_a_prepared_graph_computes_the_same_with_plain_weights(kind, tmp_path):
    ready = prepared(kind, tmp_path)
    assert distance(tmp_path / "float.onnx", ready.path, kind) < 1e-6
    found = operators(ready.path)
    assert not {"Transpose", "BatchNormalization", "Pad"} & set(found)
    assert found["Gemm"] == (kind == "text")  # the one with a factor stays
    assert {layer.name.rpartition("_")[0] or layer.name for layer in ready.layers} >= {"head"}
    names = {layer.name: layer.op_type for layer in ready.layers}
    assert list(names.values()) == list(LAYERS[kind].values())
    assert [layer.name for layer in ready.layers if layer.is_head] == ["head"]
    every = [node.name for node in onnx.load(ready.path).graph.node]
    assert len(set(every)) == len(every)
    assert set(names) <= set(every)
    assert ready.metadata == {"pslora.labels": "[]"}


@pytest.mark.parametrize("quantization", ["int8", "int8-static"])
@pytest.mark.parametrize("kind", ["conv", "text"])
def test_every_layer_in_int8_is_close_and_small(kind, quantization, tmp_path):
    ready = prepared(kind, tmp_path)
    out = tmp_path / "int8.onnx"
    names = [layer.name for layer in ready.layers]
    quantize(ready, quantization, names, 8, samples(kind), out)
    assert 0 < distance(tmp_path / "float.onnx", out, kind) < 0.05
    found = operators(out)
    assert not {"ConvInteger", "Clip"} & set(found), (
        "convolutions have fixed scales, and their Clip"
    )
    if quantization == "int8":
        assert found["MatMulInteger"] == sum(x.op_type == "MatMul" for x in ready.layers)
    else:
        assert "MatMulInteger" not in found
    kept = {i.name for i in onnx.load(out).graph.initializer if i.data_type == FLOAT}
    assert not any(name.endswith((".weight", ".T")) for name in kept if "odd" not in name), kept
    coarse = tmp_path / "7.onnx"
    quantize(ready, quantization, names, 7, samples(kind), coarse)
    weights = [
        numpy_helper.to_array(i)
        for i in onnx.load(coarse).graph.initializer
        if i.data_type == TensorProto.INT8 and len(i.dims) == 2 and "embed.weight" not in i.name
    ]
    assert all(abs(w.astype(int)).max() <= 64 for w in weights)


@pytest.mark.parametrize("quantization", ["int8", "int8-static"])
@pytest.mark.parametrize("kind", ["conv", "text"])
def test_layers_that_were_not_chosen_stay_in_float(kind, quantization, tmp_path):
    ready = prepared(kind, tmp_path)
    for layer in ready.layers:
        others = [x.name for x in ready.layers if x is not layer]
        quantize(ready, quantization, others, 8, samples(kind), tmp_path / "most.onnx")
        model = onnx.load(tmp_path / "most.onnx")
        (node,) = (n for n in model.graph.node if n.name == layer.name)
        assert node.op_type == layer.op_type
        weight = node.input[{"Gather": 0}.get(node.op_type, 1)]
        types = {i.name: i.data_type for i in model.graph.initializer}
        assert types[weight] == FLOAT, layer.name


def test_weights_that_do_not_fit_one_file(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_quantize, "EXTERNAL_ABOVE", 100)
    for quantization in ("int8", "int8-static"):
        folder = tmp_path / quantization
        folder.mkdir()
        ready = prepared("text", folder)
        assert ready.large
        assert (folder / "prepared.onnx_data").stat().st_size > 1000
        names = [layer.name for layer in ready.layers]
        quantize(ready, quantization, names, 8, samples("text"), folder / "int8.onnx")
        assert distance(folder / "float.onnx", folder / "int8.onnx", "text") < 0.05


def test_a_model_without_such_layers_is_refused(tmp_path):
    nodes = [helper.make_node("Mul", ["x", "factor"], ["y"])]
    inputs = [helper.make_tensor_value_info("x", FLOAT, ["batch", 2])]
    onnx.save(_model(nodes, inputs, {"factor": np.ones(2)}, {}, 2), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"float32 weights .* found none"):
        prepare_file(tmp_path / "m.onnx", tmp_path)


def test_a_weight_in_a_constant_node_is_a_layer_and_one_that_callers_replace_is_not():
    model = text_model()
    weights = {i.name: i for i in model.graph.initializer}
    down, up = weights["backbone.model.down.weight"], weights["backbone.model.up.weight"]
    model.graph.input.append(helper.make_tensor_value_info(down.name, FLOAT, list(down.dims)))
    model.graph.node.insert(0, helper.make_node("Constant", [], [up.name], value=up))
    model.graph.initializer.remove(up)
    layers = [layer.name for layer in prepare(ir.from_proto(model))]
    assert "up" in layers
    assert "down" not in layers


def test_what_the_tools_set_is_set_back_and_what_they_raise_is_one_line(tmp_path, monkeypatch):
    elsewhere = tmp_path / "tmp"
    elsewhere.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    handlers, level = list(logging.root.handlers), logging.root.manager.disable
    (tmp_path / "w").mkdir()
    ready = prepared("conv", tmp_path / "w")
    with pytest.raises(EdgePsloraError, match="quantiser can take; found ValueError: No data"):
        quantize(ready, "int8-static", ["first"], 8, [], tmp_path / "w" / "int8.onnx")
    assert tempfile.tempdir == str(elsewhere)
    assert list(elsewhere.iterdir()) == []
    assert (logging.root.handlers, logging.root.manager.disable) == (handlers, level)


CHILD = """
import hashlib, json, sys
from pathlib import Path
sys.path[:0] = [ROOT, ROOT + "/tests/exporters"]
from edge_pslora.exporters.run import open_onnx
import test_onnx_quantize as kit
folder, digests = Path(FOLDER), {}
for kind in kit.MODELS:
    for quantization in ("int8", "int8-static"):
        inner = folder / f"{kind}-{quantization}"
        inner.mkdir()
        ready = kit.prepared(kind, inner)
        names = {layer.name for layer in ready.layers}
        out = inner / "int8.onnx"
        kit.quantize(ready, quantization, names, 7, kit.samples(kind), out)
        digests[out.parent.name] = hashlib.sha256(out.read_bytes()).hexdigest()
        assert len(open_onnx(out).run(kit.samples(kind)[0])) == 1
print(json.dumps([digests, "torch" in sys.modules]))
"""


def test_the_same_bytes_in_every_process_and_no_torch(tmp_path):
    answers = []
    for seed in ("1", "2"):  # set and dict orders of text depend on it
        folder = tmp_path / seed
        (folder / "tmp").mkdir(parents=True)
        code = CHILD.replace("ROOT", repr(str(ROOT))).replace("FOLDER", repr(str(folder)))
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            env={"PYTHONHASHSEED": seed, "TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        # the import of onnxruntime itself leaves a session number there
        assert {path.name for path in (folder / "tmp").iterdir()} <= {".ses"}
        answers.append(json.loads(done.stdout))
    assert answers[0] == answers[1]
    assert answers[0][1] is False
    assert len(set(answers[0][0].values())) == len(answers[0][0])


def test_side_by_side_says_that_a_longer_graph_is_slower(tmp_path):
    onnx.save(text_model(), tmp_path / "a.onnx")
    model = text_model()
    for node in model.graph.node:
        node.output[:] = ["y0" if name == "y" else name for name in node.output]
    wide = numpy_helper.from_array(np.array([500, 500, 1], np.int64), "wide")
    model.graph.initializer.append(wide)
    model.graph.node.extend(
        [
            helper.make_node("Expand", ["y0", "wide"], ["block"]),
            helper.make_node("ReduceMean", ["block"], ["mean"], keepdims=0),
            helper.make_node("Add", ["y0", "mean"], ["y"]),
        ]
    )
    onnx.save(model, tmp_path / "b.onnx")
    compared = side_by_side(tmp_path / "a.onnx", tmp_path / "b.onnx", samples("text", 3))
    assert compared.rounds == ROUNDS
    assert 0 < compared.low <= compared.speedup <= compared.high < 0.9
    assert compared.first_ms < compared.second_ms
