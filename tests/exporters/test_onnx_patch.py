"""Weights patched in place: the bytes of a full export, whatever was there before, or a refusal."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import pytest

from edge_pslora.cli.main import main
from edge_pslora.errors import EdgePsloraError, InputError, ModelError, WorkspaceError
from edge_pslora.exporters import onnx_file
from edge_pslora.exporters.export import export_generation
from edge_pslora.exporters.export_options import ExportOptions
from edge_pslora.exporters.export_patch import patch_export
from edge_pslora.exporters.onnx_patch import patch_onnx
from edge_pslora.exporters.onnx_read import open_model
from edge_pslora.exporters.run import open_onnx
from edge_pslora.workspace.lock import folder_lock
from edge_pslora.workspace.reading import FileDigest, digest_file
from edge_pslora.workspace.workspace import Workspace
from tests.exporters import patch_driver, patch_kit
from tests.exporters.patch_kit import Made, files_of

Worlds = dict[str, tuple[Workspace, list[Made]]]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Worlds:
    """kind -> a workspace of some generations, and those as full exports."""
    folder = tmp_path_factory.mktemp("worlds")
    return {kind: patch_kit.workspace_of(kind, folder / kind) for kind in patch_kit.KINDS}


@pytest.fixture(params=list(patch_kit.KINDS))
def world(request: pytest.FixtureRequest, worlds: Worlds) -> tuple[Workspace, list[Made]]:
    return worlds[request.param]


@pytest.fixture
def text(worlds: Worlds) -> tuple[Workspace, list[Made]]:
    return worlds["text"]


def deploy(source: Path, folder: Path) -> Path:
    """A copy of a model and its data in a new folder."""
    folder.mkdir(parents=True)
    for path in source.parent.glob("model.onnx*"):
        shutil.copy(path, folder)
    return folder / "model.onnx"


def full(made: Made, two: bool) -> dict[str, bytes]:
    """The bytes of a full export."""
    source = made.two if two else made.one
    return {p.name: p.read_bytes() for p in source.parent.glob("model.onnx*")}


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


# --- killed


@pytest.mark.parametrize("two", [False, True])
def test_killed_at_every_step(text, tmp_path, two):
    """After each kill the file is one of the two, it runs, and the same command completes the work."""
    opened, made = text
    source = made[0].two if two else made[0].one
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}

    def drive(*arguments: object) -> str:
        command = [sys.executable, patch_driver.__file__, opened.path, 3, *arguments]
        done = subprocess.run(
            [str(part) for part in command],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    count = int(drive(deploy(source, tmp_path / "counted")))
    assert files_of(tmp_path / "counted") == full(made[2], two)
    for n in range(1, count + 1):
        deploy(source, tmp_path / str(n))
    drive(tmp_path, count)
    digests = {
        made[number].number: opened.generation(number + 1).manifest.files["model.onnx"]
        for number in (0, 2)
    }
    served, interim = set(), 0
    for n in range(1, count + 1):
        path = tmp_path / str(n) / "model.onnx"
        with open_model(path) as file:
            number = int(file.metadata["pslora.generation"])
            whole = onnx_file.digests(onnx_file.plan(file.model, file.sizes, None), file.weights)
            assert whole == (digests[number],)
            interim += file.data is not None and file.data.name != "model.onnx_data"
        if two:
            ids = np.zeros((1, 4), np.int64)
            assert open_onnx(path, threads=1).run({"input_ids": ids}).shape == (
                1,
                (2, 16, 300)[number - 1],
            )
        served.add(number)
        patch_export(opened.path, path, generation=3)
        assert files_of(path.parent) == full(made[2], two)
    assert served == {1, 3}
    assert (interim > 0) == two


def test_a_full_disk_changes_nothing(text, tmp_path, monkeypatch):
    opened, made = text
    existing = deploy(made[0].two, tmp_path / "d")
    before = files_of(tmp_path / "d")
    real = os.fsync
    for failing in (1, 2):
        calls = itertools.count(1)

        def fsync(descriptor: int, calls=calls, failing=failing) -> None:
            if next(calls) == failing:
                raise OSError(28, "No space left on device")
            real(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(EdgePsloraError, match="No space left"):
            patch_export(opened.path, existing)
        monkeypatch.setattr(os, "fsync", real)
        assert files_of(tmp_path / "d") == before


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
