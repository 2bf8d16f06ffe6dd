"""Models, adapters, graphs, workspaces and updates, as tasks of the mutant runner."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.torture import forged_graphs as graphs
from tests.torture import forged_models as forge
from tests.torture import forged_settings as settings
from tests.torture import hostile_readers as readers
from tests.torture.hostile_seeds import Seeds
from tests.torture.mutant_runner import Task
from tests.torture.mutants import Mutant

Forged = Callable[[random.Random, int], Iterator[Mutant]]


@dataclass(frozen=True)
class Given:
    """A task, and what is forged for it: (random numbers, how many) -> mutants."""

    task: Task
    forged: Forged


def model_tasks(seeds: Seeds) -> list[Given]:
    return [*_weights(seeds), *_graphs(seeds), *_folders(seeds), *_records(seeds), *_settings()]


def _inspect(name: str) -> Callable[[Path], list[str]]:
    return lambda folder: ["inspect", str(folder / name)]


def _given(forged: Forged, *arguments: Any, **more: Any) -> Given:
    return Given(Task(*arguments, **more), forged)


def _weights(seeds: Seeds) -> Iterator[Given]:
    base = seeds.workspace["w/base/model.safetensors"]
    yield _given(
        _safetensors(base),
        "model.safetensors",
        {"m.safetensors": base},
        "m.safetensors",
        readers.read_model,
        _inspect("m.safetensors"),
    )
    adapter = {
        f"ad/{n}": seeds.generation(f"adapter/{n}")
        for n in ("adapter_config.json", "adapter_model.safetensors")
    }
    files = {**adapter, "base.safetensors": base}
    for name in adapter:
        content = adapter[name]
        forged = _json(content) if name.endswith(".json") else _safetensors(content)
        yield _given(
            forged, name.removeprefix("ad/"), files, name, readers.merge, readers.merge_command
        )
    for name, read in (
        ("history", readers.read_history),
        ("head", readers.read_head),
        ("anchor", readers.read_anchor),
    ):
        content = seeds.generation(f"{name}.safetensors")
        target = f"{name}.safetensors"
        yield _given(_safetensors(content), target, {target: content}, target, read)
    files = {"delta.safetensors": seeds.delta, "base.safetensors": base}
    yield _given(
        _safetensors(seeds.delta),
        "delta.safetensors",
        files,
        "delta.safetensors",
        readers.replay,
        lambda folder: [
            "replay",
            str(folder / "delta.safetensors"),
            "--base",
            str(folder / "base.safetensors"),
            "--out",
            str(folder / "out.safetensors"),
        ],
    )


def _graphs(seeds: Seeds) -> Iterator[Given]:
    content = seeds.generation("model.onnx")
    onnx = {"model.onnx": content}
    yield _given(
        lambda rng, count: graphs.onnx_forged(content),
        "model.onnx from outside",
        onnx,
        "model.onnx",
        readers.try_onnx,
        spawns=True,
        memory=1 << 30,
    )
    yield _given(
        lambda rng, count: graphs.onnx_forged(content),
        "model.onnx of ours",
        {**seeds.workspace, **onnx},
        "model.onnx",
        readers.open_onnx,
        lambda folder: ["export", str(folder / "w"), "--patch", str(folder / "model.onnx")],
    )
    yield _given(
        lambda rng, count: _pt2(seeds.pt2, rng, count),
        ".pt2",
        {"net.pt2": seeds.pt2},
        "net.pt2",
        readers.open_pt2,
        _inspect("net.pt2"),
        command_share=40,
    )


def _folders(seeds: Seeds) -> Iterator[Given]:
    config = seeds.text["hf/config.json"]
    yield _given(
        _json(config),
        "config.json",
        dict(seeds.text),
        "hf/config.json",
        readers.import_text,
        _inspect("hf"),
        command_share=4,
        memory=512 << 20,
    )
    tokenizer = seeds.text["hf/tokenizer.json"]
    yield _given(
        _json(tokenizer),
        "tokenizer.json",
        dict(seeds.text),
        "hf/tokenizer.json",
        readers.open_tokenizer,
        _inspect("hf"),
        command_share=40,
        memory=512 << 20,
    )
    tokens = seeds.text["hf/tokenizer_config.json"]
    yield _given(
        _json(tokens),
        "tokenizer_config.json",
        dict(seeds.text),
        "hf/tokenizer_config.json",
        readers.open_tokenizer,
        memory=512 << 20,
    )
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
    yield _given(
        _json(index),
        "model.safetensors.index.json",
        sharded,
        "hf/model.safetensors.index.json",
        readers.shards,
        _inspect("hf"),
    )
    yield _given(_safetensors(weights), "a shard", sharded, "hf/part.safetensors", readers.shards)


def _records(seeds: Seeds) -> Iterator[Given]:
    from edge_pslora.workspace.update_state import Trial, UpdateState, replace_state

    def status(folder: Path) -> list[str]:
        return ["status", str(folder / "w"), "--verify"]

    files = dict(seeds.workspace)
    for name in ("workspace.json", "current", "generations/000001/manifest.json"):
        content = files[f"w/{name}"]
        forged = _json(content) if name.endswith(".json") else _lines
        read = readers.read_manifest if name.endswith("manifest.json") else readers.status
        yield _given(forged, Path(name).name, files, f"w/{name}", read, status)
    run = b'{"parent":1,"run_digest":"' + b"0" * 64 + b'"}\n'
    yield _given(
        _json(run),
        "run.json",
        {**files, "w/staging/000002.run/run.json": run},
        "w/staging/000002.run/run.json",
        readers.read_run,
        status,
    )
    scratch = _Scratch()
    with scratch as folder:
        replace_state(folder, UpdateState("board", 3, 0, trial=Trial(2, 1, 3)))
        state = (folder / "updates" / "state.json").read_bytes()
    yield _given(
        _json(state),
        "updates/state.json",
        {**files, "w/updates/state.json": state},
        "w/updates/state.json",
        readers.read_state,
    )
    bundle = _bundle(seeds)
    yield _given(
        _json(bundle), "bundle.json", {"bundle.json": bundle}, "bundle.json", readers.read_bundle
    )


def _settings() -> Iterator[Given]:
    for kind, content in (
        ("yaml", b"rank: 4\nepochs: 2\nseed: 1\nstability-weight: 0.5\n"),
        ("json", b'{"rank": 4, "epochs": 2}'),
        ("toml", b"rank = 4\nepochs = 2\n"),
    ):
        target = f"config.{kind}"

        def argv(folder: Path, target: str = target) -> list[str]:
            return [
                "adapt",
                str(folder / "none.csv"),
                "--workspace",
                str(folder / "out"),
                "-c",
                str(folder / target),
            ]

        def read(folder: Path, target: str = target) -> None:
            from edge_pslora.cli.config_file import read_config

            read_config(folder / target)

        yield _given(
            lambda rng, count, kind=kind: settings.config_forged(kind),
            target,
            {target: content},
            target,  # type: ignore[misc]
            read,
            argv,
            codes=(2, 4),
        )


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
