"""Replay from file to file: the published bytes for every kind of layer, rule, form and dtype."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_pslora.config import FACTOR_FORMS
from edge_pslora.core.replay import low_rank_update, next_weight
from edge_pslora.update import replay_write
from edge_pslora.update.delta import RULES, DeltaLayer, decode, encode
from edge_pslora.update.delta_file import open_delta, smallest_form
from edge_pslora.update.replay import check_replay, replay
from edge_pslora.workspace.reading import digest_file
from edge_pslora.workspace.tensors import write_tensors
from tests.update.delta_kit import LAYERS, ship, write_again


@given(
    form=st.sampled_from(FACTOR_FORMS),
    rule=st.sampled_from(RULES),
    first=st.booleans(),
    still=st.booleans(),
    seed=st.integers(0, 1000),
    names=st.sets(st.sampled_from(list(LAYERS)), min_size=1),
)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_the_result_is_the_published_file(form, rule, first, still, seed, names, tmp_path):
    layers = {name: LAYERS[name] for name in names}
    given = {"form": form, "rule": rule, "first": first, "still": still, "seed": seed}
    shipment = ship(tmp_path, layers=layers, **given)
    out = tmp_path / "out.safetensors"
    report = replay(shipment.delta, shipment.base, shipment.parent, out)
    assert out.read_bytes() == shipment.wanted
    assert set(report.replayed) == names
    assert report.replaced == ("head.weight", "norm.bias")
    assert smallest_form(shipment.factors) == form
    check_replay(shipment.delta, shipment.base, shipment.parent)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
@pytest.mark.parametrize("first", [True, False])
def test_a_base_in_half_precision_becomes_a_model_in_float32(dtype, first, tmp_path):
    shipment = ship(tmp_path, dtype=dtype, first=first)
    out = tmp_path / "out.safetensors"
    report = replay(tmp_path, shipment.base, shipment.parent, out)  # the folder of the delta
    assert out.read_bytes() == shipment.wanted
    assert report.widened == ()  # the only other float is replaced


def test_a_tensor_that_is_only_widened_costs_its_name(tmp_path):
    shipment = ship(tmp_path, dtype="BF16", first=True)
    with open_delta(shipment.delta) as opened:
        described = opened.delta
    child = tmp_path / "child.safetensors"
    base = np.arange(3, dtype=np.float32)
    tensors = {"scale": base.astype("float16"), "steps": np.arange(2)}
    write_tensors(shipment.base, tensors)
    write_tensors(child, {**tensors, "scale": base}, {"format": "pt"})
    lean = replace(
        described,
        layers=(),
        widened=("scale",),
        base_model=digest_file(shipment.base),
        parent_model=digest_file(shipment.base),
        model=digest_file(child),
    )
    write_again(replace(shipment, new={}), lean)
    out = tmp_path / "out.safetensors"
    assert replay(shipment.delta, shipment.base, None, out).widened == ("scale",)
    assert out.read_bytes() == child.read_bytes()


@pytest.mark.parametrize("tile", [1, 5, 1 << 20])
def test_the_result_does_not_depend_on_the_tiles(tile, tmp_path, monkeypatch):
    shipment = ship(tmp_path)
    monkeypatch.setattr(replay_write, "_TILE", tile)
    replay(shipment.delta, shipment.base, shipment.parent, tmp_path / "out.safetensors")
    assert (tmp_path / "out.safetensors").read_bytes() == shipment.wanted


def test_the_text_comes_back_as_it_was(tmp_path):
    described = ship(tmp_path).described
    assert decode(encode(described), "here") == described


def test_memory_does_not_grow_with_the_model(tmp_path):
    """64 MB of weights, half of them adapted; a few tiles and the factors are held."""
    shipment = ship(tmp_path, layers={})
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(2048, 4096)).astype(np.float32)
    base = tmp_path / "base.safetensors"
    write_tensors(base, {"big.weight": weight, "other.weight": weight[::-1]}, {"format": "pt"})
    described = replace(
        shipment.described,
        parent=None,
        layers=(),
        base_model=digest_file(base),
        parent_model=digest_file(base),
    )
    A, B = np.ones((1, 4096), np.float32), np.full((2048, 1), 0.5, np.float32)
    after = next_weight("constructive", weight, weight, low_rank_update(B, A, 16 / 3), 2)
    child = tmp_path / "child.safetensors"
    write_tensors(child, {"big.weight": after, "other.weight": weight[::-1]}, {"format": "pt"})
    delta = replace(
        described,
        layers=(DeltaLayer("big.weight", "linear", 1),),
        model=digest_file(child),
        factors="float32",
    )
    write_again(replace(shipment, factors={"big.weight": (A, B)}, new={}), delta)
    del after, weight
    tracemalloc.start()
    replay(shipment.delta, base, None, tmp_path / "out.safetensors")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (tmp_path / "out.safetensors").read_bytes() == child.read_bytes()
    assert peak < 6 << 20
