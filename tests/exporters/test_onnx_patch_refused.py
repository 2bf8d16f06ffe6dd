"""Files that are not ours, damaged ones, damaged workspaces: refused in a line, and nothing changed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from edge_pslora.cli.main import main
from edge_pslora.errors import InputError, WorkspaceError
from edge_pslora.exporters import onnx_file
from edge_pslora.exporters.export_patch import patch_export
from edge_pslora.exporters.onnx_read import open_model
from tests.exporters.patch_kit import deploy, files_of, full


def changed_model(path: Path, change) -> None:
    """The model as another tool would save it, or as our own exporter would, after `change`."""
    with open_model(path) as file:
        model = onnx.ModelProto.FromString(file.model.SerializeToString())
        change(model)
        name = None if file.data is None else file.data.name
        parts = onnx_file.plan(model, file.sizes, name).model
        weights = {
            n: b"".join(map(bytes, w.blocks(bytearray(w.nbytes)))) for n, w in file.weights.items()
        }
    path.write_bytes(b"".join(weights[p] if isinstance(p, str) else p for p in parts))


def with_metadata(key: str, value: str):
    def change(model: onnx.ModelProto) -> None:
        for entry in [e for e in model.metadata_props if e.key == key]:
            model.metadata_props.remove(entry)
        if value:
            model.metadata_props.add(key=key, value=value)

    return change


def relocated(location: str):
    def damage(path: Path) -> None:
        model = onnx.load(path, load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location
        path.write_bytes(model.SerializeToString())

    return damage


def linked(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def replaced_by(make):
    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def longer(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")


def data_of(damage):
    return lambda path: damage(path.with_name("model.onnx_data"))


BAD = {
    "no layout": lambda p: changed_model(p, with_metadata("pslora.layout", "")),
    "no JSON in the layout": lambda p: changed_model(p, with_metadata("pslora.layout", "{")),
    "unknown transform": lambda p: changed_model(
        p,
        with_metadata(
            "pslora.layout",
            '{"backbone.up.weight":{"source":"backbone.up.weight","transform":"transposed"}}',
        ),
    ),
    "other base": lambda p: changed_model(p, with_metadata("pslora.base_digest", "0" * 64)),
    "no generation": lambda p: changed_model(p, with_metadata("pslora.generation", "one")),
    "other labels": lambda p: changed_model(p, with_metadata("pslora.labels", "[]")),
    "saved by another tool": lambda p: (
        onnx.save(onnx.load(p, load_external_data=False), p) or longer(p)
    ),
    "cut": cut,
    "longer": longer,
    "empty": replaced_by(lambda p: p.write_bytes(b"")),
    "text": replaced_by(lambda p: p.write_text("not a model\n" * 200)),
    "a folder": replaced_by(lambda p: p.mkdir()),
    "a pipe": replaced_by(os.mkfifo),
    "missing": lambda p: p.unlink(),
    "a link": linked,
    "a dangling link": replaced_by(lambda p: p.symlink_to("nowhere")),
}
BAD_DATA = {
    **{
        name: data_of(BAD[name])
        for name in ("cut", "longer", "a folder", "a pipe", "missing", "a link")
    },
    "outside the folder": relocated("../model.onnx_data"),
    "absolute": relocated("/etc/passwd"),
    "another name": relocated("weights.bin"),
    "other base": BAD["other base"],
}


@pytest.mark.parametrize(
    ("two", "damage"),
    [*((False, d) for d in BAD.values()), *((True, d) for d in BAD_DATA.values())],
    ids=[*BAD, *(f"two files, {name}" for name in BAD_DATA)],
)
def test_what_is_not_ours_or_damaged_is_refused(text, tmp_path, capsys, two, damage):
    opened, made = text
    existing = deploy(made[0].two if two else made[0].one, tmp_path / "d")
    damage(existing)
    before = files_of(tmp_path / "d") if not (tmp_path / "d" / "model.onnx").is_fifo() else {}
    names = sorted(path.name for path in (tmp_path / "d").iterdir())
    assert main(["export", str(opened.path), "--patch", str(existing)]) == 4
    assert capsys.readouterr().err.count("\n") == 1
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == names
    if before:
        assert files_of(tmp_path / "d") == before


@pytest.mark.parametrize("two", [False, True])
def test_no_flipped_byte_gets_into_the_result(text, tmp_path, two):
    """Refused and unchanged; or, where it was not kept and nothing knew of it, not in the result."""
    opened, made = text
    existing = deploy(made[0].two if two else made[0].one, tmp_path / "d")
    intact, wanted = files_of(tmp_path / "d"), full(made[2], two)
    rng = np.random.default_rng(0)
    for name, content in intact.items():
        for position in rng.integers(0, len(content), 60):
            for restored, data in intact.items():
                (tmp_path / "d" / restored).write_bytes(data)
            bad = bytearray(content)
            bad[position] ^= 1 << rng.integers(8)
            (tmp_path / "d" / name).write_bytes(bad)
            before = files_of(tmp_path / "d")
            gap = name == "model.onnx_data" and before[name] != content
            try:
                patch_export(opened.path, existing)
            except InputError:
                assert files_of(tmp_path / "d") == before
            else:
                assert gap, "only bytes between two weights may pass"
                assert content[position] == 0
                assert files_of(tmp_path / "d") == wanted


def test_damage_in_the_workspace(text, tmp_path):
    """The target's is found; the old generation's does not matter to a file that is in order."""
    opened, made = text
    copy = Path(shutil.copytree(opened.path, tmp_path / "w"))
    existing = deploy(made[0].one, tmp_path / "d")

    def flip(number: int) -> None:
        path = copy / "generations" / f"{number:06d}" / "model.onnx"
        data = bytearray(path.read_bytes())
        data[-3000] ^= 1  # in the last weights
        path.write_bytes(data)

    flip(2)
    with pytest.raises(WorkspaceError, match="nothing was changed"):
        patch_export(copy, existing, generation=2)
    assert files_of(tmp_path / "d") == full(made[0], False)
    flip(1)
    patch_export(copy, existing, generation=3)
    assert files_of(tmp_path / "d") == full(made[2], False)


def test_a_deleted_generation_does_not_matter(text, tmp_path):
    opened, made = text
    copy = Path(shutil.copytree(opened.path, tmp_path / "w"))
    shutil.rmtree(copy / "generations" / "000001")
    existing = deploy(made[0].two, tmp_path / "d")
    result = patch_export(copy, existing, generation=3)
    assert "generation 1 is gone" in result.notes[0]
    assert files_of(tmp_path / "d") == full(made[2], True)
