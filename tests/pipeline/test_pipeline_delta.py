"""`export --format delta` and `replay`: three generations, every kind of layer, replayed without torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from benchmarks.export_delta import delta_rows
from edge_pslora import AdaptConfig, LoraConfig, TrainConfig, adapt
from edge_pslora.errors import AdapterError, GateRefusedError, ModelError, UsageError
from edge_pslora.exporters import export_delta as module
from edge_pslora.exporters.export import export_generation
from edge_pslora.exporters.export_options import ExportOptions
from edge_pslora.exporters.peft_adapter import read_peft_adapter
from edge_pslora.exporters.replay_onnx import replay_onnx
from edge_pslora.update.delta_file import open_delta, smallest_form
from edge_pslora.workspace import layout
from edge_pslora.workspace.tensors import open_tensors
from edge_pslora.workspace.workspace import Workspace
from tests.pipeline import pipeline_kit as kit

LAYERS = ("conv", "embed", "attention", "attention.out_proj", "series", "turned", "one")
DELTA = ExportOptions("delta")
CONFIG = AdaptConfig(lora=LoraConfig(target_modules=LAYERS), train=TrainConfig(epochs=1))
# what the sessions differ in: the form of the factors, the rule, what else is trained
SESSIONS = (
    replace(CONFIG, lora=replace(CONFIG.lora, factors="int8")),
    replace(
        CONFIG,
        lora=replace(CONFIG.lora, factors="bf16", rank=3, use_rslora=True),
        merge="average",
        train=replace(CONFIG.train, train_norms=True),
    ),
    replace(CONFIG, lora=replace(CONFIG.lora, factors="float32"), merge="max_magnitude"),
)
# the CLI in a process where neither torch nor onnx can be imported
CHILD = """
import json, sys
for name in ("torch", "onnx", "onnxruntime", "transformers", "peft"):
    sys.modules[name] = None
from edge_pslora.cli.main import main
for arguments in json.loads(sys.argv[1]):
    code = main(arguments)
    if code:
        sys.exit(code)
"""


class Net(nn.Module):
    """A picture [N, 1, 8, 8] through every kind of layer that can be adapted."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 12, 3, padding=1)
        self.embed = nn.Embedding(9, 12)
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)
        self.series = nn.Conv1d(12, 12, 3, padding=1)
        self.turned, self.one = Conv1D(20, 12), nn.Linear(20, 16)
        self.norm = nn.LayerNorm(16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bright = (8 * x.mean((1, 2, 3))).long().clamp(0, 8)
        x = torch.relu(self.conv(x)).flatten(2).transpose(1, 2)
        x = self.attention(x, x, x, need_weights=False)[0]
        x = self.series(x.transpose(1, 2)).mean(2) + self.embed(bright)
        return torch.relu(self.norm(self.one(torch.relu(self.turned(x)))))


def net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = Net().eval()
        nn.init.normal_(model.turned.bias)
        return model


def learn(folder: Path, labels: tuple[int, ...], config: AdaptConfig, n: int = 60) -> None:
    x, y = kit.digits(labels, n)
    data = kit.write_npz(folder / f"{labels[0]}.npz", x[:, None], y)
    forced = replace(config, gate=replace(config.gate, force=True))
    result = adapt(data, model=net, workspace=folder / "w", config=forced)
    assert result.promoted, result.reason


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the workspace `w` of three generations and their deltas, 1 to 3."""
    folder = tmp_path_factory.mktemp("delta")
    for labels, config in zip(((0, 1), (2, 3), (4, 5, 6)), SESSIONS, strict=True):
        learn(folder, labels, config)
    for number in (1, 2, 3):
        export_generation(folder / "w", folder / str(number), DELTA, generation=number)
    return folder


def published(home: Path, number: int, name: str = layout.MODEL) -> Path:
    return layout.generation_folder(home / "w", number) / name


def command(home: Path, place: Path, number: int) -> list[str]:
    """replay of a generation into `place`, from the one that was replayed there before."""
    parent = ["--parent", str(place / f"{number - 1}.safetensors")] if number > 1 else []
    out = str(place / f"{number}.safetensors")
    base = str(home / "w" / "base")
    return ["replay", str(home / str(number)), "--base", base, *parent, "--json", "--out", out]


def test_three_generations_are_replayed_where_no_torch_is(home, tmp_path):
    deployed = tmp_path / "deployed.onnx"
    shutil.copy(published(home, 1, layout.ONNX), deployed)
    commands = [command(home, tmp_path, number) for number in (1, 2, 3)]
    commands.append([*command(home, tmp_path, 2), "--onnx", str(deployed)])
    commands.append([*command(home, tmp_path, 3), "--onnx", str(deployed)])
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(commands)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr + done.stdout
    facts = [json.loads(line) for line in done.stdout.splitlines()]
    assert deployed.read_bytes() == published(home, 3, layout.ONNX).read_bytes()
    assert [f["onnx"] for f in facts] == [None, None, None, str(deployed), str(deployed)]
    facts = facts[:3]
    assert [(f["generation"], f["parent"]) for f in facts] == [(1, None), (2, 1), (3, 2)]
    assert [f["factors"] for f in facts] == ["int8", "bf16", "float32"]
    assert facts[2]["labels"] == ["0", "1", "2", "3", "4", "5", "6"]
    assert {"norm.weight", "pslora_head.weight"} <= set(facts[1]["replaced"])
    assert len(facts[0]["replayed"]) == len(LAYERS)
    for number in (1, 2, 3):
        assert (tmp_path / f"{number}.safetensors").read_bytes() == published(
            home, number
        ).read_bytes()


def test_an_onnx_file_is_replaced_whole_or_not_at_all(home, tmp_path):
    deployed, out = tmp_path / "deployed.onnx", tmp_path / "out.safetensors"
    before = published(home, 1)
    base = home / "w" / "base"

    def attempt(number: int, source: Path, kind: type[Exception], match: str) -> None:
        shutil.copy(source, deployed)
        content = deployed.read_bytes()
        parent = None if number == 1 else published(home, number - 1)
        with pytest.raises(kind, match=match) as caught:
            replay_onnx(home / str(number), base, parent, out, deployed)
        assert "\n" not in str(caught.value)
        assert deployed.read_bytes() == content
        assert sorted(p.name for p in tmp_path.iterdir()) == names

    names = ["bad.onnx", "deployed.onnx"]
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"no graph")
    attempt(1, published(home, 1, layout.ONNX), AdapterError, "can patch an ONNX file")
    attempt(3, published(home, 1, layout.ONNX), ModelError, "generation '1' of base")
    attempt(2, bad, ModelError, "deployed.onnx")
    attempt(2, before, ModelError, "deployed.onnx")
    content = bytearray(published(home, 1, layout.ONNX).read_bytes())
    with open_tensors(before) as file:
        bias = file.read("turned.bias").tobytes()
    content[content.index(bias) + 1] ^= 1  # a weight that no delta changes
    bad.write_bytes(content)
    attempt(2, bad, ModelError, "sha256")
    with pytest.raises(UsageError, match="--out"):
        replay_onnx(home / "2", base, before, deployed, deployed)
    # as a run leaves it that was killed after the ONNX file and before the weights
    shutil.copy(published(home, 2, layout.ONNX), deployed)
    replay_onnx(home / "2", base, before, out, deployed)
    assert out.read_bytes() == published(home, 2).read_bytes()
    assert deployed.read_bytes() == published(home, 2, layout.ONNX).read_bytes()


def test_a_delta_has_what_the_session_changed_and_nothing_else(home):
    for number, config in enumerate(SESSIONS, start=1):
        with open_delta(home / str(number)) as opened:
            delta = opened.delta
            kinds = {layer.kind for layer in delta.layers}
            assert set(opened.new) - {"norm.weight", "norm.bias"} == {
                "pslora_head.weight",
                "pslora_head.bias",
            }
        assert len(kinds) == len(LAYERS)
        assert (delta.rule, delta.session, delta.generation) == (config.merge, number, number)
        assert (delta.onnx is None) == (number == 1)
        record = json.loads((home / str(number) / "export.json").read_text())
        assert record["factors"] == config.lora.factors
        assert record["files"].keys() == {"delta.safetensors", "labels.json"}
        sizes = record["delta_bytes"], record["model_bytes"]
        assert sizes == (
            (home / str(number) / "delta.safetensors").stat().st_size,
            published(home, number).stat().st_size,
        )


def test_the_same_export_twice_gives_the_same_bytes(home, tmp_path):
    export_generation(home / "w", tmp_path / "again", DELTA, generation=2)
    for path in (home / "2").iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_the_adapter_files_hold_the_rounded_factors(home):
    for number, config in enumerate(SESSIONS, start=1):
        folder = layout.generation_folder(home / "w", number) / layout.ADAPTER
        layers = read_peft_adapter(folder).layers.values()
        pairs = {
            str(i): (f.A.reshape(f.rank, -1), f.B.reshape(len(f.B), -1))
            for i, f in enumerate(layers)
        }
        assert smallest_form(pairs) == config.lora.factors


def test_the_benchmark_measures_this(home, tmp_path):
    rows = {row.figure: row for row in delta_rows(home / "w", tmp_path, 1)}
    size = (home / "3" / "delta.safetensors").stat().st_size
    assert rows["delta (float32)"].measured == size
    ratio = rows["delta (float32) / model.safetensors"]
    assert ratio.measured == size / published(home, 3).stat().st_size
    assert ratio.met is False  # a model this small
    assert {"replay: peak memory", "replay --onnx: wall time"} <= rows.keys()
    assert all(row.measured > 0 for row in rows.values())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("field", "values", "match"),
    [
        ("config", {"merge": "cumulative"}, "cumulative, which joins running sums"),
        ("config", {}, "a merge rule of"),
        ("metrics", {"imported": [{"name": "other"}]}, "began with imported adapters"),
    ],
)
def test_what_no_receiver_could_replay_is_refused(field, values, match, home, tmp_path):
    opened = Workspace.open(home / "w")
    chosen = opened.generation(1)
    changed = replace(chosen, manifest=replace(chosen.manifest, **{field: values}))
    with pytest.raises(UsageError, match=match):
        module.export_delta(opened, changed, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_replay_that_fails_is_no_export(home, tmp_path, monkeypatch):
    """As with a generation of a version that did not round: other factors than were merged."""
    read: Callable = module.read_peft_adapter

    def other(folder: Path):
        found = read(folder)
        layers = {n: replace(f, B=f.B * np.float32(1.5)) for n, f in found.layers.items()}
        return replace(found, layers=layers)

    monkeypatch.setattr(module, "read_peft_adapter", other)
    with pytest.raises(GateRefusedError, match="bit for bit"):
        export_generation(home / "w", tmp_path / "d", DELTA)
    assert not (tmp_path / "d").exists()
