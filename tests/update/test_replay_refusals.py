"""What a receiver refuses: one line, nothing written, whatever was at OUT stays."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_pslora.errors import AdapterError, EdgePsloraError, ModelError, UsageError
from edge_pslora.update.delta_file import open_delta
from edge_pslora.update.replay import replay
from edge_pslora.workspace.tensors import write_tensors
from tests.update.delta_kit import (
    LAYERS,
    Shipment,
    described_otherwise,
    resealed,
    ship,
    write_again,
)


@pytest.fixture
def shipment(tmp_path: Path) -> Shipment:
    return ship(tmp_path)


@pytest.fixture
def refused(shipment: Shipment, tmp_path: Path) -> Callable[..., EdgePsloraError]:
    """refused(error, match, parent=..., base=...): what replay raised, after nothing has changed."""
    room = tmp_path / "room"
    room.mkdir()
    out = room / "out.safetensors"
    out.write_bytes(b"what serves")

    def check(kind: type[EdgePsloraError], match: str, **files: Any) -> EdgePsloraError:
        given = {"base": shipment.base, "parent": shipment.parent, **files}
        with pytest.raises(kind, match=match) as caught:
            replay(shipment.delta, given["base"], given["parent"], out)
        assert os.listdir(room) == ["out.safetensors"]  # noqa: PTH208
        assert out.read_bytes() == b"what serves"
        assert "\n" not in str(caught.value)
        return caught.value

    return check


def test_every_changed_byte_and_every_truncation_is_refused(tmp_path):
    shipment = ship(tmp_path, layers={"a.linear.weight": LAYERS["a.linear.weight"]})
    out = tmp_path / "out.safetensors"
    good = shipment.delta.read_bytes()
    rng = np.random.default_rng(0)
    bad = [good[:size] for size in range(len(good))]
    bad += [good + b"\0", good + good, b""]
    for position, value in enumerate(good):
        for other in (
            value ^ 0xFF,
            value ^ 1 << int(rng.integers(8)),
            0x20 if value != 0x20 else 9,
        ):
            bad.append(good[:position] + bytes([other]) + good[position + 1 :])
    accepted, messages = [], []
    for content in bad:
        if content == good:
            continue
        shipment.delta.write_bytes(content)
        try:
            with open_delta(shipment.delta):
                accepted.append(content)
        except AdapterError as problem:
            messages.append(str(problem))
    assert not any("\n" in message for message in messages)
    assert accepted == []
    assert not out.exists()
    shipment.delta.write_bytes(good)
    replay(shipment.delta, shipment.base, shipment.parent, out)
    assert out.read_bytes() == shipment.wanted


def test_another_base_or_parent_is_refused(shipment, refused, tmp_path):
    other = tmp_path / "other.safetensors"
    content = bytearray(shipment.base.read_bytes())
    content[-1] ^= 1
    other.write_bytes(content)
    refused(ModelError, "the base that the delta was made for", base=other)
    content = bytearray(shipment.parent.read_bytes())
    content[-1] ^= 1
    other.write_bytes(content)
    refused(ModelError, "generation 1 that the delta was made for", parent=other)
    refused(ModelError, "generation 1", parent=shipment.base)
    refused(ModelError, "the base", base=shipment.parent)
    refused(UsageError, "--parent", parent=None)
    refused(ModelError, "readable file", base=tmp_path / "gone")
    other.write_bytes(b"PK\x03\x04 a pickle")
    refused(ModelError, "safetensors", parent=other)


def test_files_that_are_no_delta_are_refused(shipment, refused):
    content = shipment.delta.read_bytes()
    write_tensors(shipment.delta, {"x": np.ones(2, np.float32)})
    refused(AdapterError, "a safetensors file of another kind")
    shipment.delta.write_bytes(content)

    def newer(tensors: Any, metadata: dict[str, str]) -> None:
        metadata["edge_pslora_delta"] = "2"

    resealed(shipment.delta, newer)
    refused(AdapterError, "format version 1; found '2'")


ONNX: dict[str, Any] = {
    "files": {"model.onnx": [1, "0" * 64]},
    "prefix": "",
    "names": {},
    "metadata": {},
}
LIES: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown rule": ({"rule": "median"}, "rule max_magnitude"),
    "a rule no receiver can follow": ({"rule": "cumulative"}, "rule max_magnitude"),
    "an unknown form": ({"factors": "int4"}, "factors int8"),
    "another form": ({"factors": "bf16"}, "factors BF16"),
    "a scaling of zero": ({"scaling": 0.0}, "scaling"),
    "an endless scaling": ({"scaling": 1e40}, "scaling"),
    "a session of text": ({"session": "2"}, "a session from 1"),
    "another session": ({"rule": "average", "session": 9}, "a model of"),
    "a parent after it": ({"parent": 2}, "a parent before"),
    "no layers": ({"layers": []}, "factors I8"),
    "a layer of another kind": ({"layers": [["a.linear.weight", "lstm", 2]]}, "kind of"),
    "a layer of rank 0": ({"layers": [["a.linear.weight", "linear", 0]]}, "rank"),
    "a huge rank": ({"layers": [["a.linear.weight", "linear", 65536]]}, "factors I8"),
    "a layer that is not there": ({"layers": [["gone.weight", "linear", 2]]}, "gone.weight"),
    "a layer of integers": ({"layers": [["steps", "linear", 2]]}, "steps"),
    "a layer twice": ({"layers": [["a.linear.weight", "linear", 2]] * 2}, "each tensor once"),
    "a layer that is replaced": ({"layers": [["norm.bias", "linear", 2]]}, "norm.bias"),
    "a widened tensor that is not there": ({"widened": ["gone"]}, "gone"),
    "a longer result": ({"model": [999, "0" * 64]}, "999 bytes"),
    "a digest that is none": ({"model": [999, "xyz"]}, "length and sha256 in model"),
    "an ONNX part of text": ({"onnx": "model.onnx"}, "in onnx"),
    "another file name": ({"onnx": ONNX | {"files": {"../model.onnx": [1, "0" * 64]}}}, "files of"),
    "no ONNX digest": ({"onnx": ONNX | {"files": {"model.onnx": [1, "0"]}}}, "model.onnx"),
    "names of numbers": ({"onnx": ONNX | {"names": {"a": 1}}}, "names from text to text"),
    "a prefix that is none": ({"onnx": ONNX | {"prefix": None}}, "prefix"),
    "one field more": ({"extra": 1}, "the fields"),
    "metadata that is none": ({"model_metadata": {"format": 1}}, "model_metadata"),
    "labels twice": ({"labels": ["a", "a"]}, "labels"),
}


@pytest.mark.parametrize("lie", list(LIES))
def test_a_delta_that_lies_is_refused_although_its_sha256_is_right(lie, shipment, refused):
    changes, match = LIES[lie]
    described_otherwise(shipment.delta, **changes)
    refused(AdapterError, match)


def test_a_wrong_kind_changes_the_result_and_is_refused(shipment, refused):
    layers = [[layer.name, layer.kind, layer.rank] for layer in shipment.described.layers]
    square = [[n, "transposed_linear" if n == "c.out_proj.weight" else k, r] for n, k, r in layers]
    described_otherwise(shipment.delta, layers=square)
    refused(AdapterError, "a model of")


def test_tensors_that_are_missing_cut_or_not_finite_are_refused(shipment, refused):
    good = shipment.delta.read_bytes()

    def attempt(change: Callable[[dict[str, Any]], None], match: str) -> None:
        shipment.delta.write_bytes(good)
        resealed(shipment.delta, lambda tensors, _: change(tensors))
        refused(AdapterError, match)

    attempt(lambda t: t.pop("factors"), "factors I8")
    attempt(lambda t: t.pop("scales"), "scales BF16")
    attempt(lambda t: t.pop("new.norm.bias"), "a model of")
    attempt(lambda t: t.pop("new.head.weight"), "tensors for a model")
    attempt(lambda t: t.update(factors=t["factors"][:-1]), "factors I8")
    attempt(lambda t: t.update(factors=t["factors"].reshape(1, -1)), "factors I8")
    attempt(lambda t: t.update(more=t["factors"]), "factors I8")
    attempt(lambda t: t.update({"new.more": np.ones(1, np.float32)}), "tensors for a model")
    attempt(lambda t: t.update(factors=t["factors"] + 1), "a model of")
    for bad in (np.nan, np.inf):
        attempt(lambda t, v=bad: t["scales"].__setitem__(0, v), "finite")
        attempt(lambda t, v=bad: t["new.norm.bias"].__setitem__(1, v), "finite")


def test_an_update_that_overflows_is_refused(shipment, refused):
    resealed(shipment.delta, lambda tensors, _: tensors["scales"].__setitem__(slice(None), 1e38))
    refused(AdapterError, "finite")


def test_a_result_other_than_the_published_one_gets_no_name(shipment, refused):
    wrong = replace(
        shipment.described,
        model=replace(shipment.described.model, sha256=hashlib.sha256(b"").hexdigest()),
    )
    write_again(shipment, wrong)
    refused(AdapterError, "sha256")


def test_out_is_a_file_of_its_own(shipment, tmp_path):
    for out in (shipment.base, shipment.parent, shipment.delta, tmp_path, tmp_path / "no" / "x"):
        with pytest.raises(UsageError, match="--out"):
            replay(shipment.delta, shipment.base, shipment.parent, out)
