"""Models, adapters, graphs, workspaces and updates, as tasks of the mutant runner."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_pslora.errors import WorkspaceError
from tests.torture import forged_models as forge
from tests.torture.hostile_seeds import Seeds
from tests.torture.mutant_runner import Task
from tests.torture.mutants import Mutant

Forged = Callable[[random.Random, int], Iterator[Mutant]]
_TEXTS = ["water and rain", "the ball", "rain", "a goal and the ball"]


@dataclass(frozen=True)
class Given:
    """A task, and what is forged for it: (random numbers, how many) -> mutants."""

    task: Task
    forged: Forged


def model_tasks(seeds: Seeds) -> list[Given]:
    return [*_weights(seeds), *_graphs(seeds), *_folders(seeds), *_records(seeds), *_settings()]


def _given(forged: Forged, *arguments: Any, **more: Any) -> Given:
    return Given(Task(*arguments, **more), forged)


def _weights(seeds: Seeds) -> Iterator[Given]:
    base = seeds.workspace["w/base/model.safetensors"]
    yield _given(_safetensors(base), "model.safetensors", {"m.safetensors": base}, "m.safetensors", _read_model,
                 lambda folder: ["inspect", str(folder / "m.safetensors")])  # fmt: skip
    adapter = {
        f"ad/{n}": seeds.generation(f"adapter/{n}")
        for n in ("adapter_config.json", "adapter_model.safetensors")
    }
    files = {**adapter, "base.safetensors": base}
    for name in adapter:
        content = adapter[name]
        forged = _json(content) if name.endswith(".json") else _safetensors(content)
        yield _given(forged, name.removeprefix("ad/"), files, name, _merge, _merge_command)
    for name, read in (("history", _read_history), ("head", _read_head), ("anchor", _read_anchor)):
        content = seeds.generation(f"{name}.safetensors")
        target = f"{name}.safetensors"
        yield _given(_safetensors(content), target, {target: content}, target, read)
    files = {"delta.safetensors": seeds.delta, "base.safetensors": base}
    yield _given(_safetensors(seeds.delta), "delta.safetensors", files, "delta.safetensors", _replay,
                 lambda folder: ["replay", str(folder / "delta.safetensors"), "--base",
                                 str(folder / "base.safetensors"), "--out", str(folder / "out.safetensors")])  # fmt: skip


def _graphs(seeds: Seeds) -> Iterator[Given]:
    content = seeds.generation("model.onnx")
    onnx = {"model.onnx": content}
    yield _given(lambda rng, count: forge.onnx_forged(content), "model.onnx from outside", onnx, "model.onnx",
                 _try_onnx, spawns=True, memory=1 << 30)  # fmt: skip
    yield _given(lambda rng, count: forge.onnx_forged(content), "model.onnx of ours", {**seeds.workspace, **onnx},
                 "model.onnx", _open_onnx, lambda folder: ["export", str(folder / "w"), "--patch",
                                                           str(folder / "model.onnx")])  # fmt: skip
    yield _given(lambda rng, count: _pt2(seeds.pt2, rng, count), ".pt2", {"net.pt2": seeds.pt2}, "net.pt2",
                 _open_pt2, lambda folder: ["inspect", str(folder / "net.pt2")], command_share=40)  # fmt: skip


def _folders(seeds: Seeds) -> Iterator[Given]:
    config = seeds.text["hf/config.json"]
    yield _given(_json(config), "config.json", dict(seeds.text), "hf/config.json", _import_text,
                 lambda folder: ["inspect", str(folder / "hf")], command_share=4, memory=512 << 20)  # fmt: skip
    tokenizer = seeds.text["hf/tokenizer.json"]
    yield _given(_json(tokenizer), "tokenizer.json", dict(seeds.text), "hf/tokenizer.json", _open_tokenizer,
                 lambda folder: ["inspect", str(folder / "hf")], command_share=40, memory=512 << 20)  # fmt: skip
    settings = seeds.text["hf/tokenizer_config.json"]
    yield _given(_json(settings), "tokenizer_config.json", dict(seeds.text), "hf/tokenizer_config.json",
                 _open_tokenizer, memory=512 << 20)  # fmt: skip
    weights = seeds.text["hf/model.safetensors"]
    index = (
        b'{"weight_map": {'
        + b", ".join(b'"%s": "part.safetensors"' % n for n in _names(weights))
        + b"}}"
    )
    sharded = {
        "hf/config.json": config,
        "hf/part.safetensors": weights,
        "hf/model.safetensors.index.json": index,
    }
    yield _given(_json(index), "model.safetensors.index.json", sharded, "hf/model.safetensors.index.json",
                 _shards, lambda folder: ["inspect", str(folder / "hf")])  # fmt: skip
    yield _given(_safetensors(weights), "a shard", sharded, "hf/part.safetensors", _shards)


def _records(seeds: Seeds) -> Iterator[Given]:
    from edge_pslora.workspace.update_state import Trial, UpdateState, replace_state

    def status(folder: Path) -> list[str]:
        return ["status", str(folder / "w"), "--verify"]

    files = dict(seeds.workspace)
    for name in ("workspace.json", "current", "generations/000001/manifest.json"):
        content = files[f"w/{name}"]
        forged = _json(content) if name.endswith(".json") else _lines
        read = _read_manifest if name.endswith("manifest.json") else _status
        yield _given(forged, Path(name).name, files, f"w/{name}", read, status)
    run = b'{"parent":1,"run_digest":"' + b"0" * 64 + b'"}\n'
    yield _given(_json(run), "run.json", {**files, "w/staging/000002.run/run.json": run},
                 "w/staging/000002.run/run.json", _read_run, status)  # fmt: skip
    scratch = _Scratch()
    with scratch as folder:
        replace_state(folder, UpdateState("board", 3, 0, trial=Trial(2, 1, 3)))
        state = (folder / "updates" / "state.json").read_bytes()
    yield _given(_json(state), "updates/state.json", {**files, "w/updates/state.json": state},
                 "w/updates/state.json", _read_state)  # fmt: skip
    bundle = _bundle(seeds)
    yield _given(_json(bundle), "bundle.json", {"bundle.json": bundle}, "bundle.json", _read_bundle)


def _settings() -> Iterator[Given]:
    for kind, content in (
        ("yaml", b"rank: 4\nepochs: 2\nseed: 1\nstability-weight: 0.5\n"),
        ("json", b'{"rank": 4, "epochs": 2}'),
        ("toml", b"rank = 4\nepochs = 2\n"),
    ):
        target = f"config.{kind}"

        def argv(folder: Path, target: str = target) -> list[str]:
            return ["adapt", str(folder / "none.csv"), "--workspace", str(folder / "out"), "-c",
                    str(folder / target)]  # fmt: skip

        def read(folder: Path, target: str = target) -> None:
            from edge_pslora.cli.config_file import read_config

            read_config(folder / target)

        yield _given(lambda rng, count, kind=kind: forge.config_forged(kind), target, {target: content}, target,  # type: ignore[misc]
                     read, argv, codes=(2, 4))  # fmt: skip


def _safetensors(content: bytes) -> Forged:
    return lambda rng, count: forge.safetensors_forged(content, rng, count // 2)


def _json(content: bytes) -> Forged:
    return lambda rng, count: forge.json_forged(content, rng, count * 2 // 3)


def _pt2(content: bytes, rng: random.Random, count: int) -> Iterator[Mutant]:
    yield from forge.pt2_forged(content)
    yield from forge.zip_json(
        content, ("models/model.json", "weights_config.json"), rng, count // 3
    )


def _lines(rng: random.Random, count: int) -> Iterator[Mutant]:
    sha = b"0" * 64
    for line in (
        b"000000 " + sha,
        b"000001 " + sha,
        b"999999999 " + sha,
        b"1 " + sha,
        b"000001 " + sha.upper(),
    ):
        for end in (b"", b"\n", b"\r\n", b"\n\n"):
            yield Mutant(f"{line[:10]!r} {end!r}", line + end)
    yield Mutant("a gigabyte of digits", b"0" * (1 << 24))


def _names(content: bytes) -> list[bytes]:
    import json

    length = int.from_bytes(content[:8], "little")
    return [n.encode() for n in json.loads(content[8 : 8 + length]) if n != "__metadata__"]


class _Scratch:
    """A folder for a moment."""

    def __enter__(self) -> Path:
        import tempfile

        self.folder = Path(tempfile.mkdtemp())
        return self.folder

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder)


def _bundle(seeds: Seeds) -> bytes:
    import json
    from datetime import UTC, datetime

    from edge_pslora.update import bundle
    from edge_pslora.workspace import manifest

    content = manifest.decode(seeds.generation("manifest.json"), "m")
    shipped = {name: content.files[name] for name in ("model.safetensors", "model.onnx")}
    header = json.loads(seeds.workspace["w/workspace.json"])
    return bundle.encode(
        bundle.Bundle(
            "full",
            3,
            datetime(2026, 11, 1, tzinfo=UTC),
            ("board",),
            None,
            header,
            content,
            shipped,
            shipped,
        )
    )


def _read_model(folder: Path) -> None:
    from edge_pslora.errors import ModelError
    from edge_pslora.models.weights import read_weights
    from edge_pslora.workspace.tensors import read_tensors

    tensors = read_weights(folder / "m.safetensors")
    ours = read_tensors(folder / "m.safetensors", error=ModelError)
    assert tensors.keys() == ours.keys()
    assert all(tuple(tensors[name].shape) == array.shape for name, array in ours.items())


def _merge(folder: Path) -> None:
    from edge_pslora.merge_files import merge

    merge([folder / "ad"], folder / "base.safetensors", folder / "out.safetensors")
    _finite_file(folder / "out.safetensors")


def _merge_command(folder: Path) -> list[str]:
    base, out = folder / "base.safetensors", folder / "out.safetensors"
    return ["merge", str(folder / "ad"), "--base", str(base), "--out", str(out)]


def _finite_file(path: Path) -> None:
    from edge_pslora.workspace.tensors import read_tensors

    read_tensors(path)


def _stored(path: Path, *, finite: bool = True) -> Any:
    from edge_pslora.training.stored import Stored
    from edge_pslora.workspace.tensors import open_tensors

    with open_tensors(path) as file:
        arrays = {name: file.read(name, finite=finite) for name in file.names}
        return Stored(arrays, file.header.metadata)


def _read_history(folder: Path) -> None:
    from edge_pslora.training.persist import history_from_arrays

    path = folder / "history.safetensors"
    for layer in history_from_arrays(_stored(path), str(path)).values():
        assert np.isfinite([layer.eps, layer.frobenius]).all()
        assert min(layer.shape) >= 0


def _read_head(folder: Path) -> None:
    from edge_pslora.training.persist_head import head_from_arrays

    path = folder / "head.safetensors"
    head = head_from_arrays(_stored(path), str(path))
    assert head.weight.shape[0] == len(head.bias) == len(head.labels)
    assert head.weight.isfinite().all()
    assert head.weight.is_floating_point()


def _read_anchor(folder: Path) -> None:
    from edge_pslora.training.persist import anchors_from_arrays

    path = folder / "anchor.safetensors"
    anchors = anchors_from_arrays(_stored(path, finite=False), str(path))
    assert len({len(a) for a in (*anchors.inputs.values(), anchors.targets, anchors.session)}) == 1


def _replay(folder: Path) -> None:
    from edge_pslora.update.replay import replay

    replay(
        folder / "delta.safetensors", folder / "base.safetensors", None, folder / "out.safetensors"
    )


def _try_onnx(folder: Path) -> None:
    from edge_pslora.exporters.onnx_trial import try_onnx

    try_onnx(folder / "model.onnx", seconds=5.0)


def _open_onnx(folder: Path) -> None:
    from edge_pslora.exporters.onnx_read import open_model

    with open_model(folder / "model.onnx") as file:
        assert all(weight.nbytes >= 0 for weight in file.weights.values())


def _open_pt2(folder: Path) -> None:
    import torch

    from edge_pslora.models.exported import import_exported
    from edge_pslora.models.options import ModelOptions

    samples = _samples("array", np.zeros((4, 2), np.float32))
    out = folder / "out"
    out.mkdir()
    with torch.no_grad():
        import_exported(folder / "net.pt2", samples, ModelOptions(), out)


def _samples(modality: Any, inputs: Any) -> Any:
    from edge_pslora.data.types import Samples

    return Samples(modality, "classification", inputs, np.array(["x", "y", "x", "y"]))


def _import_text(folder: Path) -> None:
    from edge_pslora.models.huggingface import import_folder
    from edge_pslora.models.options import ModelOptions

    out = folder / "out"
    out.mkdir()
    import_folder(folder / "hf", _samples("text", _TEXTS), ModelOptions(), out)


def _open_tokenizer(folder: Path) -> None:
    import torch

    from edge_pslora.models.encode_text import TextEncoder
    from edge_pslora.models.hf_folder import copy_folder
    from edge_pslora.models.hf_parts import load_tokenizer

    out = folder / "out"
    out.mkdir()
    copy_folder(folder / "hf", out)
    encoder = load_tokenizer(out, torch.nn.Embedding(10_000, 2), 16, "hf")
    assert isinstance(encoder, TextEncoder)
    assert len(encoder.encode(_samples("text", _TEXTS))) == len(_TEXTS)


def _shards(folder: Path) -> None:
    from edge_pslora.models.hf_folder import check_folder
    from edge_pslora.models.hf_shards import write_merged
    from edge_pslora.models.weights import read_weights

    check_folder(folder / "hf")
    write_merged(folder / "hf", folder / "out.safetensors")
    read_weights(folder / "out.safetensors")


def _status(folder: Path) -> Mapping[str, Any]:
    from edge_pslora.workspace.workspace import Workspace

    return Workspace.open(folder / "w").status(verify=True)


def _read_manifest(folder: Path) -> None:
    from edge_pslora.workspace import manifest
    from edge_pslora.workspace.layout import generation_folder

    content, _ = manifest.read(generation_folder(folder / "w", 1))
    assert manifest.decode(manifest.encode(content), "again") == content


def _read_run(folder: Path) -> None:
    from edge_pslora.workspace.staging import read_run

    found = read_run(folder / "w", 2)  # None: another run begins, and nothing of this one is used
    assert found is None or (isinstance(found[0], str) and (found[1] is None or found[1] >= 0))


def _read_state(folder: Path) -> None:
    from edge_pslora.workspace.update_state import read_state, replace_state

    state = read_state(folder / "w")
    if state is None:
        raise WorkspaceError("state", expected="x", found="y", remedy="z")
    replace_state(folder / "w", state)
    assert read_state(folder / "w") == state


def _read_bundle(folder: Path) -> None:
    from edge_pslora.errors import BundleError
    from edge_pslora.update import bundle
    from edge_pslora.workspace.reading import read_limited

    data = read_limited(folder / "bundle.json", bundle.MAX_BUNDLE, error=BundleError)
    assert bundle.decode(bundle.encode(bundle.decode(data, "b")), "again") is not None
