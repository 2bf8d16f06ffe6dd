"""Every kind of layer in a file that takes adapters, switched on one session in a process without torch."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from edge_pslora.errors import AdapterError, EdgePsloraError, ModelError
from edge_pslora.exporters.adapter_file import AdapterFacts, open_adapter, write_adapter
from edge_pslora.exporters.generation_update import GenerationUpdate
from edge_pslora.exporters.lora_factors import factors_from_matrices
from edge_pslora.exporters.onnx_export import export_onnx
from edge_pslora.exporters.ort_adapter import (
    AdapterPlan,
    adapter_parameters,
    input_names,
    plan_adapters,
    write_adapter_model,
)
from edge_pslora.exporters.run import OnnxRunner, open_onnx
from edge_pslora.training.classifier import Classifier, linear_head
from edge_pslora.training.inject import new_adapters
from edge_pslora.training.targets import Target, as_weight, find_targets
from tests.tiny import TinyBackbone

BASE = "0123456789abcdef" * 4
CLASSES = {1: 2, 2: 3, 3: 3}
RANKS = {1: 2, 2: 5, 3: 1}
WIDTH = 8
INPUT = "x"


class AllKinds(nn.Module):
    """Ids [N, T] -> features [N, 8]; a shared layer, and one whose weight is computed with."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.transposed = Conv1D(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.shared = nn.Linear(WIDTH, WIDTH)
        self.series = nn.Conv1d(WIDTH, WIDTH, 3, padding=2, dilation=2)
        self.picture = nn.Conv2d(1, 4, 3, stride=2, padding=1)
        self.batch_norm = nn.BatchNorm2d(4)
        self.computed = nn.Linear(WIDTH, WIDTH, bias=False)
        self.pooled = nn.Linear(4, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.embed(x)
        h = h + self.attention(h, h, h, need_weights=False)[0]
        h = self.norm(self.shared(torch.relu(self.shared(self.transposed(h)))))
        h = h + self.series(h.transpose(1, 2)).transpose(1, 2)
        h = h + h @ (self.computed.weight * 0.5)
        features: torch.Tensor = self.pooled(
            self.batch_norm(self.picture(h.unsqueeze(1))).relu().mean((2, 3))
        )
        return features


TARGETS = ("embed", "attention", "attention.out_proj", "transposed", "shared", "series", "picture")
BESIDE = {
    "embed",
    "attention",
    "attention.out_proj",
    "transposed",
    "shared",
}  # by the low-rank path


class Made:
    """A folder with model.onnx and three adapters, and what torch computes with each."""

    def __init__(self, folder: Path) -> None:
        generator = torch.Generator().manual_seed(0)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            module = AllKinds()
        for parameter in module.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.4
        module.batch_norm.running_var = torch.rand(4, generator=generator) + 0.5
        module.batch_norm.running_mean = torch.randn(4, generator=generator)
        self.backbone = TinyBackbone(module).eval().requires_grad_(False)
        self.folder = folder
        self.base = {n: t.numpy().copy() for n, t in module.state_dict().items()}
        self.batches = [torch.randint(0, 12, (1, 9)), torch.randint(0, 12, (5, 6))]
        published = folder / "published.onnx"
        axes = {INPUT: ("batch", "sequence")}
        head = linear_head(torch.zeros(2, WIDTH), torch.zeros(2))
        export_onnx(
            Classifier(self.backbone, head).eval(),
            {INPUT: self.batches[1]},
            axes,
            published,
            metadata={"pslora.base_digest": BASE, "pslora.generation": "2"},
        )
        targets = find_targets(module, (*TARGETS, "computed"))
        self.expected: dict[int, list[np.ndarray]] = {}
        updates, parameters = {}, {}
        for number in CLASSES:
            updates[number], parameters[number] = self._generation(number, targets, generator)
        empty = np.zeros((0, WIDTH), np.float32), np.zeros(0, np.float32)
        names = {name: f"backbone.model.{name}" for name in self.base}
        self.plan = plan_adapters(list(updates.values()), names, empty)
        write_adapter_model(published, folder / "model.onnx", self.plan, self.base, ())
        for number, (norm, own) in parameters.items():
            content = adapter_parameters(self.plan, updates[number], {"norm.weight": norm}, own)
            labels = tuple(f"l{k}" for k in range(CLASSES[number]))
            facts = AdapterFacts(number, BASE, "classification", labels)
            write_adapter(self.adapter(number), content, facts)

    def adapter(self, number: int) -> Path:
        return self.folder / f"g{number}.onnx_adapter"

    def runner(self) -> OnnxRunner:
        return open_onnx(self.folder / "model.onnx", threads=1)

    def _generation(
        self, number: int, targets: tuple[Target, ...], generator: torch.Generator
    ) -> tuple[GenerationUpdate, tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]]:
        chosen = targets if number < 3 else targets[:2]  # the last one adapts two layers only
        adapters = new_adapters(chosen, RANKS[number], 0.5, generator)
        state = self.backbone.model.state_dict()
        layers = {}
        for name, adapter in adapters.items():
            adapter.B.data = torch.randn(adapter.B.shape, generator=generator) * 0.3
            layers[name] = factors_from_matrices(
                adapter.target.kind,
                adapter.A.detach().numpy(),
                adapter.B.detach().numpy(),
                adapter.scaling,
                tuple(state[adapter.target.weight_name].shape),
            )
        weight = torch.randn(CLASSES[number], WIDTH, generator=generator)
        bias = torch.randn(CLASSES[number], generator=generator)
        norm = torch.rand(WIDTH, generator=generator) + 0.5
        classifier = Classifier(self.backbone, linear_head(weight, bias)).eval()
        before = {name: tensor.clone() for name, tensor in state.items()}
        with torch.no_grad():
            state["norm.weight"].copy_(norm)
            for adapter in adapters.values():
                value = state[adapter.target.weight_name]
                value += as_weight(adapter.delta(), adapter.target, value.shape)
            self.expected[number] = [classifier(x=ids).numpy() for ids in self.batches]
            for name, tensor in before.items():
                state[name].copy_(tensor)
        weights = {t.name: t.weight_name for t in chosen}
        update = GenerationUpdate(layers, weights, 0.0, True, ("norm.weight",))
        return update, (norm.numpy(), (weight.numpy(), bias.numpy()))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("ort"))


CHILD = """
import json, pathlib, sys
for name in ("torch", "onnx", "onnx_ir", "transformers", "peft"):
    sys.modules[name] = None
import numpy as np
from edge_pslora.exporters.adapter_file import open_adapter
from edge_pslora.exporters.run import open_onnx
folder = pathlib.Path(sys.argv[1])
runner = open_onnx(folder / "model.onnx", threads=1)
views = {None: runner}
for number in (1, 2, 3):
    views[number] = runner.using(open_adapter(folder / f"g{number}.onnx_adapter"))
    assert views[number].session is runner.session
found = []
for number in (2, 1, 3, None, 2, 3, 1):
    for ids in json.loads(sys.argv[2]):
        logits = views[number].run({"x": np.array(ids)})
        found.append([number, logits.tolist(), list(logits.shape)])
print(json.dumps(found))
"""


def test_every_kind_of_layer_on_one_session_without_torch(made: Made) -> None:
    ids = json.dumps([batch.tolist() for batch in made.batches])
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(made.folder), ids],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    answers = json.loads(done.stdout)
    assert len(answers) == 14
    for position, (number, logits, shape) in enumerate(answers):
        batch = position % 2
        if number is None:  # the base had no classifier
            assert shape == [len(made.batches[batch]), 0]
            continue
        expected = made.expected[number][batch]
        assert shape[1] == CLASSES[number]
        np.testing.assert_allclose(np.array(logits), expected, rtol=1e-4, atol=1e-5)
        assert np.abs(expected).max() > 0.1


def test_names_and_shapes_are_olives(made: Made) -> None:
    session = made.runner().session
    shapes = {value.name: value.shape for value in session.get_overridable_initializers()}
    assert [value.name for value in session.get_inputs()] == [INPUT]
    for path, (rows, columns) in {
        "shared": (8, 8),
        "transposed": (8, 8),
        "attention": (8, 24),
    }.items():
        a, b = shapes[f"base_model.model.{path}.lora_A.weight"], shapes[input_names(path, False)[1]]
        assert (a[0], b[1]) == (rows, columns)
        assert a[1] == b[0]
        assert a[1].startswith("lora_r")
    assert shapes["base_model.model.embed.lora_embedding_A"][0] == 12
    assert shapes["head.weight"] == ["classes", WIDTH]
    assert shapes["backbone.model.norm.weight"] == [WIDTH]
    # a causal language model: PEFT's own prefix and the model's are one
    assert input_names("model.layers.0.q_proj", False)[0] == "model.layers.0.q_proj.lora_A.weight"


def test_what_is_constant_stays_constant(made: Made) -> None:
    """Only a weight that is computed with is made anew in every run; a runtime may fold all others."""
    graph = ir.load(made.folder / "model.onnx").graph
    changed = set()
    for name, value in graph.initializers.items():
        if name.startswith("backbone.model.") and name.endswith("weight"):
            changed |= {name for node, _ in value.uses() if node.op_type == "Add"}
    assert changed == {"backbone.model.computed.weight"}
    norms = [node for node in graph if node.op_type == "BatchNormalization"]
    assert [node.inputs[0].producer().op_type for node in norms] == ["Conv"]


def test_the_same_adapter_twice_has_the_same_bytes(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "g1.onnx_adapter"
    source = onnxruntime.AdapterFormat.read_adapter(str(made.adapter(1)))
    values = {name: value.numpy() for name, value in source.get_parameters().items()}
    write_adapter(path, dict(reversed(values.items())), open_adapter(made.adapter(1)).facts)
    for suffix in (".onnx_adapter", ".json"):
        assert (
            path.with_suffix(suffix).read_bytes()
            == made.adapter(1).with_suffix(suffix).read_bytes()
        )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["g1.json", "g1.onnx_adapter"]
    assert source.get_adapter_version() == 1


@pytest.mark.parametrize("position", [0, 3, 25, -700, -1, None])
def test_a_damaged_adapter_is_never_loaded(
    made: Made, tmp_path: Path, position: int | None
) -> None:
    path = tmp_path / "a.onnx_adapter"
    data = bytearray(made.adapter(2).read_bytes())
    if position is None:
        del data[len(data) // 2 :]
    else:
        data[position] ^= 1
    path.write_bytes(data)
    beside = path.with_suffix(".json")
    with pytest.raises(AdapterError, match=r"a\.json"):
        open_adapter(path)
    beside.write_bytes(made.adapter(2).with_suffix(".json").read_bytes())
    with pytest.raises(AdapterError, match="damaged or was changed"):
        open_adapter(path)
    beside.write_text('{"generation": 2}')
    with pytest.raises(AdapterError, match="KeyError"):
        open_adapter(path)


def test_a_file_that_is_no_adapter_although_its_digest_is_right(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "a.onnx_adapter"
    path.write_bytes(b"no adapter")
    facts = json.loads(made.adapter(2).with_suffix(".json").read_bytes())
    sha = hashlib.sha256(b"no adapter").hexdigest()
    path.with_suffix(".json").write_text(json.dumps(facts | {"bytes": 10, "sha256": sha}))
    with pytest.raises(AdapterError, match="that onnxruntime can load"):
        open_adapter(path)


def test_adapters_of_something_else(made: Made, tmp_path: Path) -> None:
    runner = made.runner()
    adapter = open_adapter(made.adapter(1))
    other = replace(adapter, facts=replace(adapter.facts, base_digest="f" * 64))
    with pytest.raises(AdapterError, match="one for the base ffffffffffff, not 0123456789ab"):
        runner.using(other)
    with pytest.raises(AdapterError, match="an input ghost that it lacks"):
        runner.using(replace(adapter, shapes={**adapter.shapes, "ghost": (1,)}))
    with pytest.raises(AdapterError, match="a file that takes none"):
        open_onnx(made.folder / "published.onnx").using(adapter)
    # a shape that the graph cannot take is onnxruntime's to find
    wrong = tmp_path / "w.onnx_adapter"
    write_adapter(wrong, {"backbone.model.norm.weight": np.ones(3, np.float32)}, adapter.facts)
    with pytest.raises(ModelError):
        runner.using(open_adapter(wrong)).run({INPUT: made.batches[0].numpy()})
    assert runner.using(None).adapter is None


def test_a_graph_without_the_weight(made: Made, tmp_path: Path) -> None:
    plan: AdapterPlan = replace(made.plan, weights={**made.plan.weights, "shared.weight": "gone"})
    with pytest.raises(ModelError, match="gone"):
        write_adapter_model(
            made.folder / "published.onnx", tmp_path / "m.onnx", plan, made.base, ()
        )
    base = {**made.base, "shared.weight": np.ones((8, 9), np.float32)}
    with pytest.raises(ModelError, match=r"expected shape \[8, 8\]"):
        write_adapter_model(
            made.folder / "published.onnx", tmp_path / "m.onnx", made.plan, base, ()
        )
    assert not (tmp_path / "m.onnx").exists()


def test_what_does_not_read_back_is_not_kept(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime reports no full disk: a file cut short stands for one."""

    def cut(self: object, path: str) -> None:
        Path(path).write_bytes(b"half")

    monkeypatch.setattr(onnxruntime.AdapterFormat, "export_adapter", cut)
    facts = open_adapter(made.adapter(1)).facts
    with pytest.raises(EdgePsloraError, match="read back"):
        write_adapter(tmp_path / "a.onnx_adapter", {"a": np.ones(2, np.float32)}, facts)
    assert list(tmp_path.iterdir()) == []
