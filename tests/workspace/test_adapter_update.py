"""Updates tile by tile: the tiles cover a tensor in file order, the tiles' updates are s B A."""

from __future__ import annotations

import json
import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_pslora.errors import AdapterError
from edge_pslora.workspace.adapter_folder import check_fits, read_adapter
from edge_pslora.workspace.adapter_update import tiles, update_part
from edge_pslora.workspace.tensors import open_tensors, write_tensors

_shapes = st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple)


@settings(deadline=None)
@given(shape=_shapes, limit=st.integers(1, 100))
def test_tiles_cover_every_entry_once_and_in_order(shape, limit):
    rows, columns = shape[0], math.prod(shape[1:])
    flat = np.arange(rows * columns)
    matrix = flat.reshape(rows, columns)
    position = 0
    for tile in tiles(shape, limit):
        assert 0 < tile.size <= limit
        assert tile.first == position
        part = matrix[tile.row : tile.row + tile.height, tile.column : tile.column + tile.width]
        np.testing.assert_array_equal(part.ravel(), flat[position : position + tile.size])
        position += tile.size
    assert position == flat.size


def test_an_empty_tensor_has_no_tiles():
    assert list(tiles((0, 4), 8)) == []
    assert list(tiles((4, 0), 8)) == []


# kind -> (key of A, its shape, key of B, its shape, shape of the weight, configuration)
KINDS = {
    "linear": ("lora_A.weight", (3, 5), "lora_B.weight", (7, 3), (7, 5), {}),
    "transposed": ("lora_A.weight", (3, 5), "lora_B.weight", (7, 3), (5, 7), {"fan_in_fan_out": 1}),
    "conv1d": ("lora_A.weight", (3, 2, 4), "lora_B.weight", (7, 3, 1), (7, 2, 4), {}),
    "conv2d": (
        "lora_A.weight",
        (3, 2, 3, 2),
        "lora_B.weight",
        (5, 3, 1, 1),
        (5, 2, 3, 2),
        {"fan_in_fan_out": 1},  # which is about linear layers
    ),
    "embedding": ("lora_embedding_A", (3, 11), "lora_embedding_B", (4, 3), (11, 4), {}),
}


def literal(kind, A, B, shape):
    """s B A as the documentation of PEFT has it, in float64; r = 3, alpha = 2."""
    A, B = A.astype(np.float64), B.astype(np.float64)
    update = np.einsum("or,r...->o...", B.reshape(len(B), 3), A)
    update = update.T if kind in ("transposed", "embedding") else update
    assert update.shape == shape
    return 2 / 3 * update


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stored", [np.float32, np.float16, ml_dtypes.bfloat16])
@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(limit=st.integers(1, 90), maths=st.sampled_from([np.float32, np.float64]))
def test_tiles_of_the_update_are_the_literal_update(tmp_path_factory, kind, stored, limit, maths):
    a_key, a_shape, b_key, b_shape, shape, config = KINDS[kind]
    rng = np.random.default_rng(limit)
    A, B = rng.normal(size=a_shape).astype(stored), rng.normal(size=b_shape).astype(stored)
    folder = tmp_path_factory.mktemp("a")
    names = {f"base_model.model.m.{a_key}": A, f"base_model.model.m.{b_key}": B}
    write_tensors(folder / "adapter_model.safetensors", names)
    content = {"peft_type": "LORA", "r": 3, "lora_alpha": 2, **config}
    (folder / "adapter_config.json").write_text(json.dumps(content))
    adapter = read_adapter(folder)
    (module,) = adapter.modules
    check_fits(adapter, module, shape)
    found = np.full(math.prod(shape), np.nan, maths)
    with open_tensors(adapter.weights, error=AdapterError) as file:
        for tile in tiles(shape, limit):
            update_part(file, module, shape, tile, found[tile.first : tile.first + tile.size])
    tolerance = 1e-12 if maths is np.float64 else 1e-5
    expected = literal(kind, A, B, shape)
    np.testing.assert_allclose(found.reshape(shape), expected, rtol=tolerance, atol=tolerance)
