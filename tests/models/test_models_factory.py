"""package.module:factory, with weights, heads and faults."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from edge_pslora.data.types import Samples
from edge_pslora.errors import ModelError, UsageError
from edge_pslora.models.load import ModelOptions, import_base, load_model
from edge_pslora.models.types import ModelSource
from edge_pslora.models.user_module import build_module, is_reference

PACKAGE = "user_nets_of_a_test"
CODE = """
import torch
from torch import nn

class Net(nn.Module):
    image_size, image_mean, image_std = 12, 0.25, (0.5, 0.5, 1.0)
    def __init__(self, last=None, head="fc", softmax=False):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        self.add_module(head, nn.Linear(5, 2)) if last else None
        self.head_name, self.softmax, self.last = head, softmax, last
    def forward(self, x):
        y = self.conv(x)
        if self.last:
            y = getattr(self, self.head_name)(y.mean((2, 3)))
        return y.log_softmax(1) if self.softmax else y

def plain(): return Net()
def headed(): return Net(last=True)
def odd_head(): return Net(last=True, head="answer")
def softmaxed(): return Net(last=True, softmax=True)
def rows(): return nn.Sequential(nn.Linear(3, 4), nn.Tanh())
def flat(): return nn.Flatten(0)
def nothing(): return 3
def needs(argument): return argument
def broken(): raise KeyError("lost")
class Dictionary(nn.Module):
    def forward(self, x): return {"features": x}
def dictionary(): return Dictionary()
"""


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "code" / PACKAGE).mkdir(parents=True)
    (tmp_path / "code" / PACKAGE / "nets.py").write_text(CODE)
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path / "code")
    yield
    for name in [n for n in sys.modules if n.startswith(PACKAGE)]:
        del sys.modules[name]


def take_in(
    name: str,
    samples: Samples,
    tmp_path: Path,
    weights: Path | None = None,
    options: ModelOptions | None = None,
) -> ModelSource:
    reference = f"{PACKAGE}.nets:{name}"
    return import_base(reference, weights, samples, options or ModelOptions(), tmp_path / "base")


@pytest.fixture
def rows() -> Samples:
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    return Samples("table", "regression", values, np.zeros(4, np.float32))


def test_a_module_is_rebuilt_with_the_same_features(images: Samples, tmp_path: Path) -> None:
    before = list(sys.path)
    source = take_in("plain", images, tmp_path)
    first, second = (load_model(source, tmp_path / "base") for _ in range(2))
    assert sys.path == before
    batch = first.encoder.encode(images).batch(np.arange(6))
    assert batch["pixel_values"].shape == (6, 3, 12, 12)
    one, two = first.backbone(**batch), second.backbone(**batch)
    assert one.shape == (6, 5)
    assert torch.equal(one, two)
    assert first.backbone.model is not second.backbone.model
    assert set(first.file_names) == set(first.backbone.model.state_dict())
    settings = source.options["image"]
    assert (settings["size"], settings["mean"], settings["std"]) == (12, [0.25] * 3, [0.5, 0.5, 1])


def test_options_win_over_attributes(images: Samples, tmp_path: Path) -> None:
    options = ModelOptions(image_size=9, image_mean=0.0, image_std=1.0)
    settings = take_in("plain", images, tmp_path, options=options).options["image"]
    assert (settings["size"], settings["mean"], settings["std"]) == (9, [0.0] * 3, [1.0] * 3)


def test_a_usual_last_layer_is_cut_and_said_so(images: Samples, tmp_path: Path) -> None:
    source = take_in("headed", images, tmp_path)
    model = load_model(source, tmp_path / "base")
    assert source.options["head_module"] == "fc"
    assert model.feature_size == 5
    assert "fc" in " ".join(model.notes)
    assert not any(name.startswith("fc") for name in model.backbone.model.state_dict())


def test_another_last_layer_is_cut_on_request_only(images: Samples, tmp_path: Path) -> None:
    assert take_in("odd_head", images, tmp_path).options["feature_size"] == 2
    options = ModelOptions(head_module="answer")
    assert take_in("odd_head", images, tmp_path, options=options).options["feature_size"] == 5


def test_a_layer_that_is_not_the_last_step_stays(images: Samples, tmp_path: Path) -> None:
    assert take_in("softmaxed", images, tmp_path).options["head_module"] is None
    with pytest.raises(ModelError, match="last step"):
        take_in("softmaxed", images, tmp_path, options=ModelOptions(head_module="fc"))
    with pytest.raises(ModelError, match=r"no such module.*fc"):
        take_in("softmaxed", images, tmp_path, options=ModelOptions(head_module="nowhere"))


def test_weights_are_taken_over_byte_for_byte(rows: Samples, tmp_path: Path) -> None:
    weights = {"0.weight": torch.randn(4, 3), "0.bias": torch.randn(4)}
    (tmp_path / "w.safetensors").write_bytes(save(weights))
    source = take_in("rows", rows, tmp_path, tmp_path / "w.safetensors")
    model = load_model(source, tmp_path / "base")
    batch = model.encoder.encode(rows).batch(np.arange(4))
    expected = torch.tanh(batch["x"] @ weights["0.weight"].T + weights["0.bias"])
    torch.testing.assert_close(model.backbone(**batch), expected)
    copied = (tmp_path / "base" / "model.safetensors").read_bytes()
    assert copied == (tmp_path / "w.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("weights", "match"),
    [
        ({"0.weight": torch.zeros(4, 3)}, "0.bias missing"),
        (
            {"0.weight": torch.zeros(4, 2), "0.bias": torch.zeros(4)},
            r"0.weight.*\[4, 3\].*\[4, 2\]",
        ),
        (
            {"0.weight": torch.zeros(4, 3), "0.bias": torch.zeros(4), "1.bias": torch.zeros(1)},
            "unknown 1.bias",
        ),
        ({"0.weight": torch.zeros(4, 3), "0.bias": torch.full((4,), torch.inf)}, "NaN or infinity"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    weights: dict[str, torch.Tensor], match: str, rows: Samples, tmp_path: Path
) -> None:
    (tmp_path / "w.safetensors").write_bytes(save(weights))
    with pytest.raises(ModelError, match=match):
        take_in("rows", rows, tmp_path, tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("nowhere", "nowhere"),
        ("nothing", "int"),
        ("needs", "argument"),
        ("broken", "KeyError"),
        ("flat", r"\[6\]"),
        ("dictionary", "dict"),
        ("headed", "Conv2d|conv2d|channels"),
    ],
)
def test_modules_that_do_not_serve_are_refused_in_one_line(
    name: str, match: str, rows: Samples, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=match) as caught:
        take_in(name, rows, tmp_path)
    assert "\n" not in str(caught.value)


def test_missing_values_are_not_passed_on_in_silence(rows: Samples, tmp_path: Path) -> None:
    values = np.array(rows.inputs)
    values[3, 1] = np.nan
    with pytest.raises(ModelError, match=r"finite.*missing values"):
        take_in("rows", Samples("table", "regression", values, rows.targets), tmp_path)


def test_text_is_refused(texts: Samples, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="text data"):
        take_in("rows", texts, tmp_path)


@pytest.mark.parametrize("reference", ["no_such_package_here:net", f"{PACKAGE}.other:net"])
def test_what_cannot_be_imported_is_named(reference: str) -> None:
    with pytest.raises(ModelError, match="No module named"):
        build_module(reference)


def test_changed_code_is_noticed(rows: Samples, tmp_path: Path) -> None:
    source = take_in("rows", rows, tmp_path)
    sys.modules[f"{PACKAGE}.nets"].rows = lambda: torch.nn.Linear(3, 4)  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match="missing"):
        load_model(source, tmp_path / "base")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a.b:c", True), ("a:b.c", True), ("a", False), ("a b:c", False), ("/a:b", False)],
)
def test_references(text: str, expected: bool) -> None:
    assert is_reference(text) is expected


def test_arguments_that_name_nothing(rows: Samples, tmp_path: Path) -> None:
    base = tmp_path / "base"
    with pytest.raises(ModelError, match="no such folder"):
        import_base("bert-base-uncased", None, rows, ModelOptions(), base)
    with pytest.raises(ModelError, match="a file"):
        import_base(__file__, None, rows, ModelOptions(), base)
    with pytest.raises(UsageError, match="--weights"):
        import_base("auto", Path("w.safetensors"), rows, ModelOptions(), base)
