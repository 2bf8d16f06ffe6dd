"""Weight files: every damage is one ModelError, nothing else."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch import nn

from edge_pslora.errors import ModelError, UsageError
from edge_pslora.models.options import ModelOptions
from edge_pslora.models.weights import load_into, read_weights, write_weights


@pytest.fixture
def good() -> bytes:
    return save({"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)})


def test_every_truncation_is_refused(good: bytes, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    for length in range(len(good)):
        path.write_bytes(good[:length])
        with pytest.raises(ModelError):
            read_weights(path)


def test_trailing_bytes_and_giant_headers_are_refused(good: bytes, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    for raw in (good + b"x", struct.pack("<Q", 2**40) + good[8:], b"", b"PK\x03\x04" * 9):
        path.write_bytes(raw)
        with pytest.raises(ModelError):
            read_weights(path)


def test_a_name_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    entry = json.dumps({"dtype": "F32", "shape": [1], "data_offsets": [0, 4]})
    header = f'{{"a": {entry}, "a": {entry}}}'.encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
    with pytest.raises(ModelError, match="twice"):
        read_weights(path)


@pytest.mark.parametrize("name", ["w.bin", "w.pt", "w.pth", "w.ckpt", "w.pkl"])
def test_pickles_are_refused_by_name_unread(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="pickle"):
        read_weights(tmp_path / name)


def test_a_folder_or_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="a folder"):
        read_weights(tmp_path)
    with pytest.raises(ModelError, match="no such file"):
        read_weights(tmp_path / "x.safetensors")


def test_tied_weights_may_be_stored_once(tmp_path: Path) -> None:
    def tied() -> nn.Sequential:
        net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
        net[1].weight = net[0].weight
        return net

    first, second = tied(), tied()
    load_into(second, {"0.weight": first[0].weight.detach()}, "here")
    assert torch.equal(second[1].weight, first[1].weight)
    write_weights(first, tmp_path / "w.safetensors")
    load_into(second, read_weights(tmp_path / "w.safetensors"), "here")
    assert second[1].weight is second[0].weight


@pytest.mark.parametrize("arguments", [{"max_length": 1}, {"image_size": 2}, {"image_std": 0.0}])
def test_options_are_checked(arguments: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        ModelOptions(**arguments)  # type: ignore[arg-type]
