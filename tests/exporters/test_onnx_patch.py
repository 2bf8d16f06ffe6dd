"""Weights patched in place: the bytes of a full export, whatever generation was there before."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import tracemalloc

import numpy as np
import onnx
import pytest

from edge_pslora.cli.main import main
from edge_pslora.errors import ModelError
from edge_pslora.exporters import onnx_file
from edge_pslora.exporters.export import export_generation
from edge_pslora.exporters.export_options import ExportOptions
from edge_pslora.exporters.export_patch import patch_export
from edge_pslora.exporters.onnx_patch import patch_onnx
from edge_pslora.exporters.onnx_read import open_model
from edge_pslora.workspace.lock import folder_lock
from edge_pslora.workspace.reading import FileDigest, digest_file
from tests.exporters import patch_kit
from tests.exporters.patch_kit import deploy, files_of, full

# --- the core, without a workspace


@pytest.mark.parametrize("two", [False, True])
def test_new_arrays_give_the_bytes_of_a_full_export(world, tmp_path, two):
    """Heads that grow and shrink; weights of many kinds; constants that stay."""
    _, made = world
    for a, b in itertools.permutations(range(len(made)), 2):
        existing = deploy(made[a].two if two else made[a].one, tmp_path / f"{a}{b}")
        wanted = made[b]
        patch_onnx(existing, existing, wanted.arrays(), wanted.metadata)
        assert files_of(existing.parent) == full(wanted, two)


def test_only_what_changed_has_to_be_given_and_the_rest_is_not_read(text, tmp_path, monkeypatch):
    _, made = text
    changed = {
        name: array
        for name, array in made[1].arrays().items()
        if name in ("head.weight", "head.bias")
        or name.startswith(("backbone.embed", "backbone.attention.in"))
    }
    expected = (digest_file(made[1].one),)
    asked = []
    real = os.copy_file_range
    monkeypatch.setattr(
        os, "copy_file_range", lambda s, t, n, **k: (asked.append(n), real(s, t, n, **k))[1]
    )
    done = patch_onnx(
        made[0].one, tmp_path / "m.onnx", changed, made[1].metadata, expected=expected
    )
    assert (tmp_path / "m.onnx").read_bytes() == made[1].one.read_bytes()
    large = sum(a.nbytes for a in made[1].arrays().values() if a.nbytes >= onnx_file.LARGE)
    assert done.kept == sum(asked)
    assert done.kept + done.written == large + 2048  # the constant
    assert done.written == sum(a.nbytes for a in changed.values() if a.nbytes >= onnx_file.LARGE)


def test_from_one_layout_to_the_other(text, tmp_path):
    _, made = text
    for two in (False, True):
        source, wanted = (made[0].one, made[1].two) if two else (made[0].two, made[1].one)
        out = tmp_path / str(two) / "model.onnx"
        out.parent.mkdir()
        expected = (digest_file(made[1].one),)
        done = patch_onnx(
            source, out, made[1].arrays(), made[1].metadata, expected=expected, external=two
        )
        assert files_of(out.parent) == {p.name: p.read_bytes() for p in done.paths}
        assert files_of(out.parent) == {
            p.name: p.read_bytes() for p in wanted.parent.glob("model.onnx*")
        }


def test_what_was_not_expected_replaces_nothing(text, tmp_path):
    _, made = text
    for two in (False, True):
        existing = deploy(made[0].two if two else made[0].one, tmp_path / str(two))
        before = files_of(existing.parent)
        wrong = (FileDigest(made[1].one.stat().st_size, "0" * 64),)
        with pytest.raises(ModelError, match="nothing was changed"):
            patch_onnx(existing, existing, made[1].arrays(), made[1].metadata, expected=wrong)
        assert files_of(existing.parent) == before


@pytest.mark.parametrize(
    ("name", "change", "found"),
    [
        ("backbone.up.weight", lambda a: a[:-1], r"shape \[31, 16\]"),
        ("head.weight", lambda a: a[:, :-1], r"shape \[16, 15\]"),
        ("head.weight", lambda a: a[:0], r"shape \[0, 16\]"),
        ("backbone.up.weight", lambda a: a.astype(np.float64), "float64"),
        ("backbone.unknown", lambda a: np.ones(3, np.float32), "no such weight"),
        ("const_0", lambda a: np.ones(3, np.int64), "no such weight"),
        ("head.bias", lambda a: a[:-1], "another head"),
    ],
)
def test_arrays_that_do_not_fit(text, tmp_path, name, change, found):
    _, made = text
    arrays = made[1].arrays()
    arrays[name] = change(arrays.get(name))
    with pytest.raises(ModelError, match=found):
        patch_onnx(made[1].one, tmp_path / "m.onnx", arrays, made[1].metadata)
    assert list(tmp_path.iterdir()) == []


def test_nothing_of_size_is_read(tmp_path):
    """A model whose one weight of 1 GiB is a hole in the file."""
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[1 << 18, 1 << 10])
    layout = json.dumps({"w": {"source": "w", "transform": "identity"}})
    model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], [tensor]))
    model.metadata_props.add(key=onnx_file.LAYOUT_KEY, value=layout)
    head, name = onnx_file.plan(model, {"w": 1 << 30}, None).model[0], "w"
    parts = onnx_file.plan(model, {"w": 1 << 30}, None).model
    path = tmp_path / "m.onnx"
    path.write_bytes(b"".join(p for p in parts if isinstance(p, bytes)))
    os.truncate(path, path.stat().st_size + (1 << 30))
    tracemalloc.start()
    with open_model(path) as file:
        assert file.weights[name].nbytes == 1 << 30
        assert file.weights[name].offset >= len(head)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


# --- with a workspace


@pytest.mark.parametrize("two", [False, True])
def test_any_generation_becomes_any_other(world, tmp_path, two):
    opened, made = world
    for a, b in itertools.permutations(range(len(made)), 2):
        existing = deploy(made[a].two if two else made[a].one, tmp_path / f"{a}{b}")
        result = patch_export(opened.path, existing, generation=b + 1)
        assert files_of(existing.parent) == full(made[b], two)
        assert (result.generation, result.facts["patched_from"]) == (b + 1, a + 1)
        assert result.facts["kept_bytes"] > 0
        again = patch_export(opened.path, existing, generation=b + 1)
        assert again.facts["written_bytes"] == 0
        assert files_of(existing.parent) == full(made[b], two)


def test_generations_that_were_published_in_two_files(text, tmp_path):
    """As those of more than 1.5 GB are; what is deployed may be the same or one file."""
    _, made = text
    opened = patch_kit.new_workspace("text", tmp_path / "w")
    for number in (1, 2):
        staged = opened.begin(hashlib.sha256(str(number).encode()).hexdigest())
        for name, content in full(made[number - 1], True).items():
            (staged.folder / name).write_bytes(content)
        patch_kit.publish(opened, staged, made[number - 1].metadata)
    for two in (False, True):
        existing = deploy(made[0].two if two else made[0].one, tmp_path / str(two))
        patch_export(opened.path, existing)
        assert files_of(existing.parent) == full(made[1], two)
        assert patch_export(opened.path, existing).facts["written_bytes"] == 0


def test_the_command_and_the_files_beside(text, tmp_path, capsys):
    """An export that is patched is, file by file, the export of the new generation."""
    opened, _ = text
    for number in (1, 3):
        export_generation(
            opened.path, tmp_path / str(number), ExportOptions("onnx"), generation=number
        )
    command = ["export", str(opened.path), "--patch", str(tmp_path / "1" / "model.onnx"), "--json"]
    assert main(command) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["generation"], facts["format"], facts["patched_from"]) == (3, "onnx", 1)
    assert files_of(tmp_path / "1") == files_of(tmp_path / "3")
    # killed after the model, before the record: the same command completes it
    (tmp_path / "1" / "export.json").write_bytes(
        (tmp_path / "1" / "export.json")
        .read_bytes()
        .replace(b'"generation":3', b'"generation":1')
        .replace(opened.generation(3).manifest_sha256.encode(), b"0" * 64)
    )
    (tmp_path / "1" / "labels.json").unlink()
    assert main(command) == 0
    assert files_of(tmp_path / "1") == files_of(tmp_path / "3")


def test_wrong_use(text, tmp_path, capsys):
    opened, made = text
    existing = str(deploy(made[0].one, tmp_path / "d"))
    before = files_of(tmp_path / "d")
    w = str(opened.path)
    for arguments in (
        [],
        ["--format", "onnx"],
        [str(tmp_path / "out")],
        [str(tmp_path / "out"), "--patch", existing],
        ["--patch", existing, "--format", "peft"],
        ["--patch", existing, "--opset", "19"],
        ["--patch", existing, "--external-data"],
        ["--patch", existing, "--quantize", "int8"],
        ["--patch", existing, "--overwrite"],
        ["--patch", existing, "--data", existing],
        ["--patch", str(made[0].one)],  # in the workspace
    ):
        assert main(["export", w, *arguments]) == 2, arguments
        assert capsys.readouterr().err.count("\n") == 1
    with folder_lock(tmp_path / "d"):
        assert main(["export", w, "--patch", existing]) == 5
    assert files_of(tmp_path / "d") == before
    assert opened.generation(1).verify() is None


def test_the_sha256_of_a_plan_is_that_of_the_file(world):
    _, made = world
    for one in made:
        for path in (one.one, one.two):
            with open_model(path) as file:
                name = None if file.data is None else file.data.name
                found = onnx_file.digests(
                    onnx_file.plan(file.model, file.sizes, name), file.weights
                )
            paths = [path] if name is None else [path, path.with_name(name)]
            assert [d.sha256 for d in found] == [
                hashlib.sha256(p.read_bytes()).hexdigest() for p in paths
            ]
