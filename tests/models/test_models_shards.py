"""Hugging Face folders whose weights lie in several files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from edge_pslora.data.types import Samples
from edge_pslora.errors import ModelError
from edge_pslora.models.hf_shards import INDEX_FILE, merged_sha256
from edge_pslora.models.load import ModelOptions, import_base

Build = Callable[..., Path]


def in_shards(folder: Path, count: int = 3) -> dict[str, torch.Tensor]:
    """The folder's weights in `count` files, as save_pretrained(max_shard_size=...) lays them out."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {}
    for number in range(count):
        name = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        part = {n: tensors[n] for n in sorted(tensors)[number::count]}
        (folder / name).write_bytes(save(part, {"format": "pt"}))
        places |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / INDEX_FILE).write_text(json.dumps(index))
    return tensors


def adopt(folder: Path, samples: Samples, base: Path) -> Path:
    base.mkdir()
    import_base(str(folder), None, samples, ModelOptions(), base)
    return base / "model.safetensors"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shards_become_one_file(
    hf_folder: Build, texts: Samples, tmp_path: Path, dtype: torch.dtype
) -> None:
    folder = hf_folder("bert", dtype=dtype)
    tensors = in_shards(folder)
    one = adopt(folder, texts, tmp_path / "base")
    found = load_file(one)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[n], t) and found[n].dtype == dtype for n, t in tensors.items())
    assert hashlib.sha256(one.read_bytes()).hexdigest() == merged_sha256(folder)
    assert not (tmp_path / "base" / INDEX_FILE).exists()


def test_what_transformers_saves(hf_folder: Build, texts: Samples, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = hf_folder("bert")
    model = transformers.BertModel.from_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="10KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    found = load_file(adopt(folder, texts, tmp_path / "base"))
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def index_of(folder: Path) -> dict[str, str]:
    places: dict[str, str] = json.loads((folder / INDEX_FILE).read_text())["weight_map"]
    return places


def write_index(folder: Path, places: dict[str, str]) -> None:
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": places}))


def gone(folder: Path) -> None:
    (folder / "model-00002-of-00003.safetensors").unlink()


def cut(folder: Path) -> None:
    shard = folder / "model-00003-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-8])


def escape(folder: Path) -> None:
    write_index(folder, index_of(folder) | {"x": "../other.safetensors"})


def promise(folder: Path) -> None:
    write_index(folder, index_of(folder) | {"x": "model-00001-of-00003.safetensors"})


def forget(folder: Path) -> None:
    places = index_of(folder)
    write_index(folder, {name: places[name] for name in sorted(places)[1:]})


DAMAGE = {
    gone: "every shard of the index; found no such file",
    cut: "bytes of tensors; found 10104 bytes",
    escape: "names of files in the same folder",
    promise: "expected x; found no such tensor",
    forget: "as well",
    (lambda f: (f / INDEX_FILE).write_text("[]")): "a weight_map",
    (lambda f: (f / "model-00001-of-00003.safetensors").write_bytes(b"")): "safetensors",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_shards(
    hf_folder: Build, texts: Samples, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = hf_folder("bert")
    in_shards(folder)
    damage(folder)
    with pytest.raises(ModelError, match=DAMAGE[damage]) as caught:
        adopt(folder, texts, tmp_path / "base")
    assert "\n" not in str(caught.value)
