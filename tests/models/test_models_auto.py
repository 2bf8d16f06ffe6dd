"""Built-in networks: they learn, do not depend on anything but the seed, and take raw values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edge_pslora.data.types import Samples
from edge_pslora.errors import ModelError
from edge_pslora.models.auto import layout_of, strides_for
from edge_pslora.models.builtin import WIDE, TableNet
from edge_pslora.models.load import ModelOptions, import_base, load_model
from edge_pslora.models.types import LoadedModel


def fit(samples: Samples, base: Path, options: ModelOptions | None = None) -> LoadedModel:
    base.mkdir(parents=True)
    return load_model(import_base("auto", None, samples, options or ModelOptions(), base), base)


def features(model: LoadedModel, samples: Samples) -> torch.Tensor:
    batch = model.encoder.encode(samples).batch(np.arange(len(samples)))
    with torch.no_grad():
        result: torch.Tensor = model.backbone(**batch)
    return result


def ridge_accuracy(model: LoadedModel, train: Samples, test: Samples) -> float:
    labels, codes = np.unique(np.asarray(train.targets), return_inverse=True)
    f = features(model, train).double()
    onehot = torch.eye(len(labels), dtype=torch.float64)[torch.from_numpy(codes)]
    eye = torch.eye(f.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(f.T @ f + 0.1 * eye, f.T @ onehot)
    found = labels[(features(model, test).double() @ weights).argmax(1).numpy()]
    return float((found == test.targets).mean())


def rings(count: int, seed: int) -> Samples:
    """Inside or outside of a circle, in units far from one; one column noise, one constant."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(count, 2))
    inside = (points**2).sum(1) < 1.2
    noise = rng.normal(size=count)
    rows = np.stack([points[:, 0] * 1e4 + 3e4, points[:, 1] * 1e-3, noise, np.full(count, 7)], 1)
    rows[rng.random(rows.shape) < 0.03] = np.nan
    return Samples(
        "table", "classification", rows.astype(np.float32), np.where(inside, "in", "out")
    )


def slopes(count: int, shape: tuple[int, ...], seed: int) -> Samples:
    """Noise on a slope that rises or falls along the longest axis."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(count, *shape)).astype(np.float32)
    low = rng.random(count) < 0.5
    axis = int(np.argmax(shape))
    slope = np.linspace(-1, 1, shape[axis], dtype=np.float32)
    slope = slope.reshape([-1 if a == axis else 1 for a in range(len(shape))])
    sign = np.where(low, 1, -1).astype(np.float32).reshape([-1] + [1] * len(shape))
    values += sign * slope
    return Samples("array", "classification", values, np.where(low, "up", "down"))


def test_a_table_is_learned_through_a_curved_border(tmp_path: Path) -> None:
    train, test = rings(400, 0), rings(400, 1)
    model = fit(train, tmp_path / "base")
    assert ridge_accuracy(model, train, test) > 0.85
    assert features(model, train).isfinite().all()


def test_the_same_seed_gives_the_same_bytes_and_leaves_the_global_state(tmp_path: Path) -> None:
    samples = rings(120, 0)
    torch.default_generator.manual_seed(5)
    before = torch.random.get_rng_state()
    for name in ("one", "two"):
        fit(samples, tmp_path / name)
        torch.rand(3)
    torch.random.set_rng_state(before)
    fit(samples, tmp_path / "other", ModelOptions(seed=1))
    assert torch.equal(torch.random.get_rng_state(), before)
    one, two, other = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two", "other")
    )
    assert one == two
    assert one != other


def test_the_network_itself_scales_and_fills_in(tmp_path: Path) -> None:
    """Columns in other units, fitted anew, mean the same to the network."""
    samples = rings(100, 0)
    scaled = Samples(
        "table",
        "classification",
        (np.asarray(samples.inputs) * np.float32(1024)).astype(np.float32),
        samples.targets,
    )
    one = features(fit(samples, tmp_path / "one"), samples)
    two = features(fit(scaled, tmp_path / "two"), scaled)
    torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-3)


def test_random_features_stand_behind_the_learned_ones(tmp_path: Path) -> None:
    table = rings(60, 1)
    model = fit(table, tmp_path / "base")
    network = model.backbone.model
    assert isinstance(network, TableNet)
    found, size = features(model, table), len(network.widen.drawn)
    assert found.shape == (60, WIDE)
    literal = np.maximum(found[:, :size].numpy() @ network.widen.drawn.numpy(), 0)
    np.testing.assert_allclose(found[:, size:], literal, atol=1e-5)
    with torch.random.fork_rng():  # fitting has left what was drawn first as it was
        torch.manual_seed(0)
        drawn = TableNet(network.fc1.in_features // 2, size).widen.drawn
    assert torch.equal(network.widen.drawn, drawn)


def test_values_first_missing_later_change_nothing_by_chance(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(60, 3)).astype(np.float32)
    targets = (rows[:, 0] > 0).astype(str)
    model = fit(Samples("table", "classification", rows, targets), tmp_path / "base")
    mean = np.nan_to_num(rows.mean(0, dtype=np.float64)).astype(np.float32)
    filled, missing = np.tile(mean, (1, 1)), np.full((1, 3), np.nan, np.float32)
    with torch.no_grad():
        a = model.backbone(x=torch.from_numpy(filled))
        b = model.backbone(x=torch.from_numpy(missing))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_outliers_are_bounded(tmp_path: Path) -> None:
    model = fit(rings(60, 0), tmp_path / "base")
    wild = torch.tensor([[1e30, -1e30, torch.inf, -torch.inf]])
    with torch.no_grad():
        assert model.backbone(x=wild).isfinite().all()


def test_regression_features_explain_the_target(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(300, 3)).astype(np.float32)
    targets = (1000 + 50 * rows[:, 0] * rows[:, 1]).astype(np.float32)
    samples = Samples("table", "regression", rows, targets)
    f = features(fit(samples, tmp_path / "base"), samples).double()
    y = torch.from_numpy(targets).double()
    f = torch.cat([f, torch.ones(300, 1, dtype=torch.float64)], 1)
    eye = torch.eye(f.shape[1], dtype=torch.float64)
    w = torch.linalg.solve(f.T @ f + 0.1 * eye, f.T @ y)
    assert float(((f @ w - y) ** 2).mean() / y.var()) < 0.3


@pytest.mark.parametrize("shape", [(8, 8), (3, 12, 12), (12, 12, 3), (40, 5), (5, 40)])
def test_arrays_are_learned_in_every_layout(shape: tuple[int, ...], tmp_path: Path) -> None:
    train, test = slopes(160, shape, 0), slopes(160, shape, 1)
    assert ridge_accuracy(fit(train, tmp_path / "base"), train, test) > 0.9


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((28, 28), ("hw", 1, 28)),
        ((128, 64), ("hw", 1, 64)),
        ((50, 6), ("tc", 6, 50)),
        ((6, 50), ("ct", 6, 50)),
        ((3, 32, 40), ("chw", 3, 32)),
        ((32, 40, 3), ("hwc", 3, 32)),
        ((4, 3, 3), ("chw", 4, 3)),
    ],
)
def test_layouts(shape: tuple[int, ...], expected: tuple[str, int, int]) -> None:
    assert layout_of(shape) == expected


def test_arrays_of_five_axes_are_refused(tmp_path: Path) -> None:
    samples = Samples(
        "array", "classification", np.zeros((4, 2, 2, 2, 2), np.float32), np.array(list("abab"))
    )
    with pytest.raises(ModelError, match=r"\[2, 2, 2, 2\]"):
        fit(samples, tmp_path / "base")


def test_strides_leave_something_to_pool() -> None:
    for side in range(1, 512):
        strides = strides_for(side)
        assert 2 <= len(strides) <= 5
        assert side / np.prod(strides) > 1 or max(strides) == 1 or side <= 4


def test_texts_are_learned_by_their_words(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    words = [f"word{i}" for i in range(40)]

    def make(count: int) -> Samples:
        texts, labels = [], []
        for _ in range(count):
            good = bool(rng.random() < 0.5)
            text = list(rng.choice(words, 8)) + (["wonderful"] if good else ["dreadful"])
            texts.append(" ".join(rng.permutation(text)))
            labels.append("good" if good else "bad")
        return Samples("text", "classification", texts, np.array(labels))

    train, test = make(200), make(200)
    model = fit(train, tmp_path / "base")
    assert ridge_accuracy(model, train, test) > 0.9
    assert model.dynamic_axes["input_ids"] == ("batch", "sequence")


def test_texts_do_not_depend_on_padding(texts: Samples, tmp_path: Path) -> None:
    model = fit(texts, tmp_path / "base")
    encoded = model.encoder.encode(texts)
    with torch.no_grad():
        together = model.backbone(**encoded.batch(np.arange(4)))
        alone = torch.cat([model.backbone(**encoded.batch(np.array([i]))) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_images_are_learned_by_colour(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    files, labels = [], []
    for index in range(60):
        pixels = rng.integers(0, 200, (24, 24, 3), dtype=np.uint8)
        pixels[..., index % 2] += 55
        files.append(tmp_path / f"{index}.png")
        image.fromarray(pixels).save(files[-1])
        labels.append("red" if index % 2 == 0 else "green")
    samples = Samples("image", "classification", files, np.array(labels))
    model = fit(samples, tmp_path / "base", ModelOptions(image_size=16))
    assert model.encoder.input_names == ("pixel_values",)
    assert ridge_accuracy(model, samples, samples) > 0.9
