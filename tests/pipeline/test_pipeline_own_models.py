"""Models without their source or from Python, through `adapt`: sessions, ONNX, evaluation."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edge_pslora import AdaptConfig, LoraConfig, TrainConfig, adapt, evaluate
from edge_pslora.errors import EdgePsloraError, ModelError, UsageError, WorkspaceError
from tests.pipeline import pipeline_kit as kit
from tests.pipeline.device_checks import assert_a_device_runs_it

CONFIG = AdaptConfig(lora=LoraConfig(target_modules=("two",)), train=TrainConfig(epochs=1))


class Net(nn.Module):
    def __init__(self, size: int = 32) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(64, size), nn.Linear(size, size)
        self.head = nn.Linear(size, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.two(torch.relu(self.one(x)))))


def seeded_net(size: int = 32) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return Net(size).eval()


def data(folder: Path) -> list[Path]:
    names = ((0, 1, 2), (3, 4))
    return [kit.digits_npz(folder / f"{i}.npz", n, 150) for i, n in enumerate(names)]


def learn(source: Path, workspace: Path, **more: Any) -> Any:
    return adapt(source, workspace=workspace, config=CONFIG, **more)


def test_an_exported_network_learns_two_sessions(tmp_path, run):
    path = tmp_path / "net.pt2"
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(seeded_net(), (torch.randn(2, 64),), dynamic_shapes=shapes)
    torch.export.save(program, path)
    first, second = data(tmp_path)
    workspace = tmp_path / "w"
    options = ("--workspace", workspace, "--target", "two", "--epochs", 1)
    done = run("adapt", first, "--model", path, *options)
    assert done.code == 0, done.facts
    assert done.facts["onnx_max_abs_error"] < 1e-4
    bytes_before = path.read_bytes()
    path.write_bytes(bytes_before + b"x")
    other = run("adapt", second, "--model", path, *options)
    assert (other.code, other.facts["error"]) == (4, "WorkspaceError")
    path.unlink()  # the workspace has what it needs
    assert run("adapt", second, *options).code == 0
    found = run("eval", workspace, second, "--compare-torch")
    assert found.facts["agreement"] == 1.0


def test_the_same_network_gives_the_same_model_whichever_way_it_comes(tmp_path, device):
    """A .pt2 file, a module and its function: the same layers learn the same."""
    path = tmp_path / "net.pt2"
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(seeded_net(), (torch.randn(2, 64),), dynamic_shapes=shapes)
    torch.export.save(program, path)
    source = data(tmp_path)[0]
    models: dict[str, Any] = {"pt2": str(path), "module": seeded_net(), "function": seeded_net}
    for name, model in models.items():
        assert learn(source, tmp_path / name, model=model).promoted
        given = None if name == "pt2" else model
        assert_a_device_runs_it(device, tmp_path / name, given)
    merged = {kit.files_of(tmp_path / name, 1)["model.safetensors"] for name in models}
    assert len(merged) == 1


def test_a_module_from_python_is_copied_and_needed_every_time(tmp_path):
    first, second = data(tmp_path)
    workspace = tmp_path / "w"
    module = seeded_net().train()
    before = copy.deepcopy(module.state_dict())
    assert learn(first, workspace, model=module).promoted
    assert module.training
    assert all(p.requires_grad for p in module.parameters())
    assert all(torch.equal(v, before[n]) for n, v in module.state_dict().items())
    assert isinstance(module.head, nn.Linear)

    with pytest.raises(
        ModelError, match=r"model=: expected a .*Net as in the first session; found none"
    ):
        learn(second, workspace)
    with pytest.raises(ModelError, match=r"a .*Net of other layers"):
        learn(second, workspace, model=seeded_net(16))
    with pytest.raises(WorkspaceError, match="give model= that module"):
        learn(second, workspace, model="auto")
    with pytest.raises(ModelError, match="found none"):
        evaluate(workspace, second)

    fresh = Net()  # other weights: the workspace's are used
    result = learn(second, workspace, model=fresh)
    assert result.generation == 2
    scored = evaluate(workspace, second, model=lambda: Net(), compare_torch=True)
    assert scored.agreement == 1.0
    assert result.to_dict()["retention"] is not None


def test_a_module_for_a_workspace_of_another_kind(workspace, tmp_path):
    with pytest.raises(WorkspaceError, match="found --model a module from Python"):
        learn(data(tmp_path)[0], workspace, model=seeded_net())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: 3, "found int"),
        (lambda: undefined_name, "NameError"),  # type: ignore[name-defined]  # noqa: F821
        (lambda needed: needed, "TypeError"),
        (Net(7).half(), None),
        (nn.Linear(3, 3), "a model that takes"),
    ],
)
def test_bad_modules_leave_nothing_behind(tmp_path, model, message):
    source, workspace = data(tmp_path)[0], tmp_path / "w"
    if message is None:  # half precision is taken in float32
        assert learn(source, workspace, model=model).metrics["onnx_agreement"] == 1.0
        return
    with pytest.raises(ModelError, match=message):
        learn(source, workspace, model=model)
    assert not workspace.exists() or kit.snapshot(workspace).keys() <= {"staging"}


def test_weights_beside_a_module(tmp_path):
    with pytest.raises(UsageError, match="brings its own weights"):
        learn(data(tmp_path)[0], tmp_path / "w", model=Net(), weights=tmp_path / "x.safetensors")


def test_texts_need_a_tokenizer(tmp_path):
    source = kit.write_jsonl(tmp_path / "t.jsonl", ("sport", "food"))
    with pytest.raises(EdgePsloraError, match="cut into tokens"):
        learn(source, tmp_path / "w", model=Net())
