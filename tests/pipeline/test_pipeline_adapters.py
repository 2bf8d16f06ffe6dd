"""`adapt --adapter`: PEFT folders as past sessions, against the real PEFT."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save
from torch import nn

from edge_pslora import AdaptConfig, LoraConfig, TrainConfig, adapt
from edge_pslora.data.options import ReadOptions
from edge_pslora.errors import AdapterError, EdgePsloraError, UsageError
from edge_pslora.exporters.export import export_generation
from edge_pslora.exporters.export_options import ExportOptions
from edge_pslora.exporters.peft_adapter import read_peft_adapter
from edge_pslora.pipeline import run as pipeline_run
from edge_pslora.pipeline.memory_files import load_memory
from edge_pslora.workspace.workspace import Workspace
from tests.pipeline import pipeline_kit as kit

pytestmark = pytest.mark.usefixtures("kept_graphs")  # it is not about tracing

STILL = AdaptConfig(lora=LoraConfig(target_modules=("two",)), train=TrainConfig(epochs=0))
SOME = replace(STILL, train=TrainConfig(epochs=1))


class Net(nn.Module):
    """A picture [N, 1, 8, 8] and its brightness, through every kind of layer that PEFT stores."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 12, 3, padding=1)
        self.embed = nn.Embedding(9, 12)
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)
        self.one, self.two = nn.Linear(12, 24), nn.Linear(24, 24, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bright = (8 * x.mean((1, 2, 3))).long().clamp(0, 8)
        x = torch.relu(self.conv(x)).flatten(2).transpose(1, 2)
        x = self.attention(x, x, x, need_weights=False)[0].mean(1) + self.embed(bright)
        return torch.relu(self.two(torch.relu(self.one(x))))


class Wrapped(nn.Module):
    """What a classifier around the encoder calls its layers: one name more in front."""

    def __init__(self) -> None:
        super().__init__()
        self.base = Net()
        self.classifier = nn.Linear(24, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.base(x))


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return build().eval()


def peft_model(build: Callable[[], nn.Module] = Net, seed: int = 1, **settings: Any) -> PeftModel:
    """The net with a PEFT adapter that does something."""
    config = PeftConfig(**{"r": 4, "lora_alpha": 6, "target_modules": ["one", "two"]} | settings)
    model = get_peft_model(seeded(build), config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # PEFT 0.21 adds an adapter of an attention's out_proj twice: it is left at zero
            if "lora_" in name and ".out_proj." not in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


RICH = {
    "target_modules": ["conv", "embed", "one", "two"],
    "rank_pattern": {"two": 2, "conv": 5},
    "alpha_pattern": {"embed": 3, "two": 16},
    "use_rslora": True,
}


def saved(folder: Path, model: PeftModel) -> Path:
    model.save_pretrained(str(folder), save_embedding_layers=False)  # else it asks the hub
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    x, y = kit.digits((0, 1, 2), 120)
    return kit.write_npz(tmp_path / "digits.npz", x[:, None], y)


AGAIN = ReadOptions(keep_duplicates=True)  # the same samples in every session


def learn(source: Path, workspace: Path, *adapters: Path, config: AdaptConfig = STILL) -> Any:
    result = adapt(
        source,
        model=seeded(Net),
        workspace=workspace,
        adapters=adapters,
        read=AGAIN,
        config=replace(config, gate=replace(config.gate, force=True)),
    )
    assert result.promoted, result.reason
    return result


def merged(workspace: Path, number: int = 1) -> dict[str, torch.Tensor]:
    return load_file(workspace / "generations" / f"{number:06d}" / "model.safetensors")


def gap(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    return max(float((found[n] - wanted[n]).abs().max()) for n in wanted)


@pytest.mark.parametrize("settings", [{}, RICH, {"target_modules": ["attention", "one"]}])
def test_the_start_is_what_peft_merges(tmp_path, source, settings):
    model = peft_model(**settings)
    folder = saved(tmp_path / "theirs", model)
    result = learn(source, tmp_path / "w", folder)
    wanted = model.merge_and_unload().state_dict()
    assert gap(merged(tmp_path / "w"), wanted) <= 1e-6
    assert gap(wanted, seeded(Net).state_dict()) > 1e-3
    assert result.metrics["sessions"] == 2
    assert result.metrics["tasks"] == ["theirs", "digits"]
    assert result.metrics["imported"][0]["name"] == "theirs"
    assert any("theirs counts as session 1" in note for note in result.metrics["notes"])


def test_the_exported_adapter_is_the_whole_update(tmp_path, source):
    """Generation 1 after an import is more than its own session's adapter."""
    model = peft_model(**RICH)
    learn(source, tmp_path / "w", saved(tmp_path / "theirs", model))
    found = export_generation(tmp_path / "w", tmp_path / "out", ExportOptions("peft"))
    assert found.facts["max_relative_error"] < 1e-6
    loaded = PeftModel.from_pretrained(seeded(Net), str(tmp_path / "out"))
    wanted = model.merge_and_unload().state_dict()
    assert gap(loaded.merge_and_unload().state_dict(), wanted) <= 1e-6
    own = json.loads((tmp_path / "w/generations/000001/adapter/pslora_config.json").read_text())
    assert own["imported"] == ["theirs"]
    assert own["applies_to"].endswith("the base with the imported adapters")


def test_our_adapter_through_peft_and_back_is_the_same_to_the_bit(tmp_path, source):
    config = replace(SOME, lora=LoraConfig(target_modules=("conv", "embed", "one", "two")))
    learn(source, tmp_path / "first", config=config)
    ours = tmp_path / "first" / "generations" / "000001" / "adapter"
    again = saved(tmp_path / "again", PeftModel.from_pretrained(seeded(Net), str(ours)))
    learn(source, tmp_path / "second", again)
    assert gap(merged(tmp_path / "second"), merged(tmp_path / "first")) == 0.0
    before, after = read_peft_adapter(ours).layers, read_peft_adapter(again).layers
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[n].delta(), after[n].delta()) for n in before)


def test_several_adapters_are_merged_in_order_by_the_rule(tmp_path, source):
    models = [peft_model(seed=s, target_modules=t) for s, t in ((1, ["one"]), (2, ["one", "two"]))]
    folders = [saved(tmp_path / f"a{i}", model) for i, model in enumerate(models)]
    config = replace(STILL, merge="none")
    result = learn(source, tmp_path / "w", *folders, config=config)
    base = seeded(Net).state_dict()
    states = [model.merge_and_unload().state_dict() for model in models]
    wanted = {n: base[n] + sum(state[n] - base[n] for state in states) for n in base}
    assert gap(merged(tmp_path / "w"), wanted) <= 1e-6
    assert result.metrics["tasks"] == ["a0", "a1", "digits"]
    memory = load_memory(Workspace.open(tmp_path / "w").published())
    assert memory.sessions == 3
    for name in ("one", "two"):
        left, right = memory.history[name].factors()
        delta = wanted[f"{name}.weight"] - base[f"{name}.weight"]
        assert torch.allclose((left @ right).float(), delta, atol=2e-3)


@pytest.mark.parametrize("rule", ["max_magnitude", "cumulative", "constructive", "average"])
def test_every_rule_takes_adapters_and_goes_on(tmp_path, source, rule):
    folders = [saved(tmp_path / f"a{s}", peft_model(seed=s)) for s in (1, 2)]
    config = replace(SOME, merge=rule)
    learn(source, tmp_path / "w", *folders, config=config)
    # generation 2 is trained on top: the workspace needs no adapter any more
    config = replace(config, lora=LoraConfig())
    result = adapt(source, model=Net, workspace=tmp_path / "w", config=config, read=AGAIN)
    assert result.metrics["sessions"] == 4
    assert {layer["name"] for layer in result.metrics["layers"]} == {"one", "two"}


def test_an_adapter_of_the_model_around_ours(tmp_path, source):
    model = peft_model(Wrapped, target_modules=["base.one", "base.two"])
    learn(source, tmp_path / "w", saved(tmp_path / "theirs", model))
    net = seeded(Net).state_dict()
    theirs = seeded(Wrapped).state_dict()
    changed = model.merge_and_unload().state_dict()
    delta = changed["base.one.weight"] - theirs["base.one.weight"]
    assert (
        float((merged(tmp_path / "w")["one.weight"] - net["one.weight"] - delta).abs().max())
        <= 1e-6
    )


class Transposed(Net):
    """With the layers of GPT-2: weights [in, out], one of them square."""

    def __init__(self) -> None:
        super().__init__()
        conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
        self.one, self.two = conv1d(24, 12), conv1d(24, 24)


def test_transposed_layers(tmp_path, source):
    model = peft_model(Transposed, fan_in_fan_out=True)
    folder = saved(tmp_path / "theirs", model)
    adapt(
        source,
        model=lambda: seeded(Transposed),
        workspace=tmp_path / "w",
        adapters=[folder],
        config=replace(STILL, gate=replace(STILL.gate, force=True)),
    )
    assert gap(merged(tmp_path / "w"), model.merge_and_unload().state_dict()) <= 1e-6


def test_targets_are_those_of_the_option_and_of_the_adapters(tmp_path, source):
    folder = saved(tmp_path / "theirs", peft_model(target_modules=["one"]))
    result = learn(source, tmp_path / "w", folder, config=SOME)
    assert [layer["name"] for layer in result.metrics["layers"]] == ["one", "two"]
    assert all(layer["rank"] == 8 for layer in result.metrics["layers"])


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    (folder / "adapter_model.safetensors").write_bytes(save(tensors, {"format": "pt"}))


def configure(folder: Path, **values: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def only_a_pickle(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(b"\x80\x02.")


ONE_A, ONE_B = (f"base_model.model.one.lora_{x}.weight" for x in "AB")
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "gone": (shutil.rmtree, "no such folder"),
    "no config": (lambda f: (f / "adapter_config.json").unlink(), "no adapter_config.json"),
    "a pickle": (only_a_pickle, "pickled weights are never loaded"),
    "truncated": (
        lambda f: (f / "adapter_model.safetensors").write_bytes(b"\x10"),
        "adapter_model.safetensors",
    ),
    "not LoRA": (lambda f: configure(f, peft_type="IA3"), "peft_type LORA"),
    "DoRA": (lambda f: configure(f, use_dora=True), "no use_dora"),
    "not finite": (lambda f: edit(f, lambda t: t[ONE_A].fill_(float("nan"))), "finite"),
    "other ranks": (lambda f: configure(f, r=3), "as adapter_config.json says"),
    "other shapes": (
        lambda f: edit(f, lambda t: t.update({ONE_A: torch.zeros(4, 13)})),
        r"factors of a linear with weight \[24, 12\]",
    ),
    "no such layer": (
        lambda f: edit(
            f,
            lambda t: t.update({k.replace(".one.", ".three."): t.pop(k) for k in (ONE_A, ONE_B)}),
        ),
        "three.weight in the model",
    ),
}


def test_the_model_says_which_weights_are_transposed(tmp_path, source):
    """PEFT keeps one flag for all layers, as its last one wants it."""
    plain = saved(tmp_path / "plain", peft_model())
    flagged = saved(tmp_path / "flagged", peft_model())
    configure(flagged, fan_in_fan_out=True)
    learn(source, tmp_path / "w1", plain)
    learn(source, tmp_path / "w2", flagged)
    assert gap(merged(tmp_path / "w1"), merged(tmp_path / "w2")) == 0.0


@pytest.mark.parametrize("case", BAD)
def test_bad_adapters_leave_nothing_behind(tmp_path, source, run, case):
    damage, message = BAD[case]
    folder = saved(tmp_path / "theirs", peft_model())
    damage(folder)
    workspace = tmp_path / "w"
    with pytest.raises(AdapterError, match=message) as caught:
        learn(source, workspace, folder)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 4
    assert not (workspace / "workspace.json").exists()
    assert not (workspace / "base").exists()


@pytest.mark.parametrize("factor", [10, 100, 1000])
def test_an_adapter_on_another_scale_is_refused(tmp_path, source, factor):
    folder = saved(tmp_path / "theirs", peft_model())
    edit(folder, lambda t: t[ONE_B].mul_(factor))
    with pytest.raises(AdapterError, match=r"theirs, one: expected an update of at most 1 times"):
        adapt(source, model=seeded(Net), workspace=tmp_path / "w", adapters=[folder], config=STILL)
    assert not (tmp_path / "w" / "workspace.json").exists()


def test_a_head_that_was_saved_whole(tmp_path, source):
    model = peft_model(Wrapped, target_modules=["base.one"], modules_to_save=["classifier"])
    with pytest.raises(AdapterError, match=r"classifier\.\w+.*saved whole.*merge it first"):
        learn(source, tmp_path / "w", saved(tmp_path / "theirs", model))


def test_only_before_the_first_session(tmp_path, source):
    folder = saved(tmp_path / "theirs", peft_model())
    learn(source, tmp_path / "w", config=SOME)
    before = kit.snapshot(tmp_path / "w" / "generations")
    with pytest.raises(UsageError, match="adapters come before everything else"):
        learn(source, tmp_path / "w", folder, config=SOME)
    assert kit.snapshot(tmp_path / "w" / "generations") == before


def test_a_session_that_stopped_goes_on_with_the_adapters(tmp_path, source, monkeypatch):
    folder = saved(tmp_path / "theirs", peft_model())
    learn(source, tmp_path / "whole", folder, config=SOME)

    def full(*_: object) -> None:
        raise EdgePsloraError("disk", expected="space", found="none", remedy="free some")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline_run, "write_candidate", full)
        with pytest.raises(EdgePsloraError, match="free some"):
            learn(source, tmp_path / "w", folder, config=SOME)
    assert (tmp_path / "w" / "workspace.json").exists()
    assert learn(source, tmp_path / "w", folder, config=SOME).metrics["sessions"] == 2
    for name in ("model.safetensors", "history.safetensors", "model.onnx"):
        assert kit.files_of(tmp_path / "w", 1)[name] == kit.files_of(tmp_path / "whole", 1)[name]


def test_from_the_command_line(tmp_path, source, run):
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(seeded(Net), (torch.rand(2, 1, 8, 8),), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "net.pt2")
    folders = [saved(tmp_path / f"a{s}", peft_model(seed=s)) for s in (1, 2)]
    options = ("--workspace", tmp_path / "w", "--target", "two", "--epochs", 1, "--force")
    model = ("--model", tmp_path / "net.pt2")
    done = run("adapt", source, *model, *options, "--adapter", folders[0], "--adapter", folders[1])
    assert done.code == 0, done.facts
    assert done.facts["tasks"] == ["a1", "a2", "digits"]
    broken = run("adapt", source, *model, "--workspace", tmp_path / "v", "--adapter", tmp_path)
    assert (broken.code, broken.facts["error"]) == (4, "AdapterError")
    assert run("status", tmp_path / "w").facts["metrics"]["sessions"] == 3
