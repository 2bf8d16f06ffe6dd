"""`bundle` and `keys`: real generations as signed updates, read back by python-tuf's own client."""

from __future__ import annotations

import json
import shutil
import tarfile
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from edge_pslora.cli.main import main
from edge_pslora.errors import GateRefusedError, InputError, UsageError, WorkspaceLockedError
from edge_pslora.exporters import bundle_files
from edge_pslora.exporters.export_bundle import BundleOptions, described, export_bundle
from edge_pslora.exporters.replay_onnx import replay_onnx
from edge_pslora.signing import extra
from edge_pslora.signing.repository import read_repository
from edge_pslora.update.bundle import decode
from edge_pslora.workspace import layout
from edge_pslora.workspace.lock import folder_lock
from edge_pslora.workspace.reading import digest_file
from tests.publisher_kit import add_generation, make_publisher
from tests.signing.signing_kit import files_of, keys_in, taken

FULL, DELTA = BundleOptions(kind="full"), BundleOptions(kind="delta")
SERVING = ["README.md", "model.onnx", "model.safetensors"]
NOW = datetime(2026, 11, 25, 12, 30, 5, tzinfo=UTC)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A workspace of three generations, keys and their signers; nothing changes them."""
    folder = tmp_path_factory.mktemp("publisher")
    opened = make_publisher(folder / "w")
    return opened, *keys_in(folder / "k")


def device(out: Path, root: Path) -> dict[str, bytes | None]:
    """Every signed file, as a new device takes it."""
    data = taken(out, root.read_bytes(), ["bundle.json"])["bundle.json"]
    assert data is not None
    return taken(out, root.read_bytes(), ["bundle.json", *decode(data, "").payload])


def test_a_full_bundle_has_what_serving_needs(home, tmp_path):
    opened, made, signers = home
    result = export_bundle(
        opened.path, tmp_path / "out", signers[:2], FULL, root=made.root, generation=2, now=NOW
    )
    assert (result.kind, result.generation, result.counter) == ("full", 2, 2)
    assert list(result.files) == SERVING
    found = device(tmp_path / "out", made.root)
    bundle = decode(found.pop("bundle.json"), "")
    chosen = opened.generation(2)
    assert found == {name: (chosen.path / name).read_bytes() for name in SERVING}
    assert bundle.manifest == chosen.manifest
    assert bundle.result == bundle.payload
    assert bundle.header == json.loads((opened.path / "workspace.json").read_bytes())
    assert (bundle.signed_at, bundle.parent_model) == (NOW, None)
    assert result.bytes == bundle.bytes == sum(map(len, found.values()))
    assert result.standing.expires.isoformat() == "2026-12-25T12:30:05+00:00"


def test_a_delta_and_what_it_goes_on_from_make_the_generation(home, tmp_path):
    opened, made, signers = home
    out = tmp_path / "out"
    result = export_bundle(opened.path, out, signers[:2], DELTA, root=made.root)
    assert list(result.files) == ["README.md", "delta.safetensors"]
    found = device(out, made.root)
    bundle = decode(found["bundle.json"], "")
    parent, chosen = opened.generation(2), opened.generation(3)
    assert bundle.parent_model == digest_file(parent.path / layout.MODEL)
    assert sorted(bundle.result) == SERVING
    (tmp_path / "delta.safetensors").write_bytes(found["delta.safetensors"])
    shutil.copy(parent.path / layout.ONNX, tmp_path / layout.ONNX)
    replay_onnx(
        tmp_path / "delta.safetensors",
        opened.base,
        parent.path,
        tmp_path / layout.MODEL,
        tmp_path / layout.ONNX,
    )
    for name in (layout.MODEL, layout.ONNX):
        assert (tmp_path / name).read_bytes() == (chosen.path / name).read_bytes()
        assert bundle.result[name] == digest_file(tmp_path / name)


def test_the_first_delta_goes_on_from_the_base_and_ships_its_onnx_file(home, tmp_path):
    opened, made, signers = home
    out = tmp_path / "out"
    options = replace(DELTA, with_base=True)
    export_bundle(opened.path, out, signers[:2], options, root=made.root, generation=1)
    bundle = described(out, read_repository(out).current)
    assert bundle.parent_model is None
    base = {f"base/{name}" for name in opened.header.base_files}
    assert bundle.payload.keys() == {"README.md", "delta.safetensors", "model.onnx", *base}
    assert sorted(bundle.result) == SERVING


def test_what_holds_samples_is_shipped_only_when_asked_for(home, tmp_path):
    opened, made, signers = home
    for kind in ("full", "delta"):
        options = BundleOptions(kind=kind, learn=True, device_classes=("a", "b.2"))
        out = tmp_path / kind
        result = export_bundle(opened.path, out, signers[:2], options, root=made.root)
        learned = {n for n in result.files if n.startswith("adapter/") or n.startswith("anchor")}
        assert learned == {
            *("adapter/adapter_config.json", "adapter/adapter_model.safetensors"),
            *("anchor.safetensors", "adapter/pslora_config.json"),
        } & set(opened.current().manifest.files)
        bundle = described(out, read_repository(out).current)
        assert learned < bundle.result.keys()
        assert not {"report.html", "rejected.jsonl"} & {*bundle.payload, *bundle.result}
        assert bundle.device_classes == ("a", "b.2")


def test_auto_takes_the_smaller_and_says_why(home, tmp_path, monkeypatch):
    opened, made, signers = home

    def made_of(name: str, generation: int, **more):
        options = BundleOptions(**more)
        out = tmp_path / name
        return export_bundle(
            opened.path, out, signers[:2], options, root=made.root, generation=generation
        )

    first, third = made_of("1", 1), made_of("3", 3)
    assert (first.kind, third.kind) == ("full", "delta")
    assert "no generation before" in first.notes[0]
    assert made_of("base", 3, with_base=True).kind == "full"
    assert third.notes[0].startswith(f"delta: {third.bytes} bytes, in full ")

    for kind in (GateRefusedError, UsageError):

        def impossible(*_, kind=kind):
            raise kind("", expected="a merge rule of x", found="cumulative", remedy="")

        monkeypatch.setattr(bundle_files, "export_delta", impossible)
        whole = made_of(kind.__name__, 3)
        assert (whole.kind, whole.notes) == (
            "full",
            ("full: no delta, cumulative (a merge rule of x is needed)",),
        )
    with pytest.raises(UsageError, match="cumulative"):
        export_bundle(opened.path, tmp_path / "d", signers, DELTA, root=made.root)
    monkeypatch.undo()
    real = bundle_files.delta_payload

    def large(*args, **more):
        found = real(*args, **more)
        digest = replace(found.digests["delta.safetensors"], bytes=1 << 30)
        return replace(found, digests={**found.digests, "delta.safetensors": digest})

    monkeypatch.setattr("edge_pslora.exporters.export_bundle.delta_payload", large)
    assert made_of("large", 3).notes[0].startswith("full: a delta would take ")


def test_counters_only_grow(home, tmp_path):
    opened, made, signers = home
    out = tmp_path / "out"

    def make(counter=None, by=signers[:2]):
        options = replace(FULL, counter=counter)
        return export_bundle(opened.path, out, by, options, root=made.root, generation=3).counter

    assert [make(), make(), make(10), make()] == [3, 4, 10, 11]
    for counter in (1, 11):
        with pytest.raises(UsageError, match="more than 11"):
            make(counter)
    assert make(20, signers[:1]) == 20  # waits for a signature
    assert make() == 21
    found = read_repository(out)
    assert found.draft is None
    assert len(files_of(out)) == 4 + 1 + len(SERVING)


def test_the_tar_file_is_the_folder_and_the_same_each_time(home, tmp_path):
    opened, made, signers = home
    out = tmp_path / "out"
    options = replace(FULL, tar=True)
    first = export_bundle(opened.path, out, signers[:1], options, root=made.root, now=NOW)
    assert first.tar is None  # a signature is missing
    assert not (tmp_path / "out.tar").exists()
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        result = export_bundle(
            opened.path, tmp_path / place / "o", signers[:2], options, root=made.root, now=NOW
        )
    one, other = (tmp_path / place / "o.tar" for place in "ab")
    assert result.tar == str(other)
    assert one.read_bytes() == other.read_bytes()
    with tarfile.open(one, "r:") as tar:
        members = tar.getmembers()
        assert all(m.isreg() and m.pax_headers == {} for m in members)
        assert {m.name: tar.extractfile(m).read() for m in members} == files_of(one.with_suffix(""))


def test_what_is_unfit_is_refused_and_changes_nothing(home, tmp_path):
    opened, made, signers = home
    good = {"workspace": opened.path, "out": tmp_path / "o", "signers": signers[:2]}
    (tmp_path / "file").write_text("x")
    cases = [
        ({"out": opened.path / "sub"}, {}, "outside the workspace"),
        ({"out": tmp_path / "no" / "o"}, {}, "existing folder"),
        ({"out": tmp_path / "file"}, {}, "a file or a link"),
        ({}, {"device_classes": ()}, "--device-class"),
        ({}, {"device_classes": ("a", "a")}, "--device-class"),
        ({}, {"device_classes": ("../x",)}, "--device-class"),
        ({}, {"expires": -1.0}, "--expires"),
    ]
    for arguments, options, match in cases:
        given = {**good, **arguments}
        with pytest.raises(UsageError, match=match):
            export_bundle(
                given["workspace"],
                given["out"],
                given["signers"],
                replace(FULL, **options),
                root=made.root,
            )
        assert [p.name for p in tmp_path.iterdir()] == ["file"]
    (tmp_path / "o").mkdir()
    with folder_lock(tmp_path / "o"), pytest.raises(WorkspaceLockedError):
        export_bundle(opened.path, tmp_path / "o", signers, FULL, root=made.root)


def test_a_generation_that_was_changed_is_not_signed(home, tmp_path):
    _, made, signers = home
    opened = make_publisher(tmp_path / "w", 2)
    out = tmp_path / "out"
    export_bundle(opened.path, out, signers[:2], FULL, root=made.root, generation=1)
    before = files_of(out / "metadata")
    path = opened.generation(2).path / layout.MODEL
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    for options in (FULL, DELTA, BundleOptions()):
        with pytest.raises(InputError, match="roll back or restore"):
            export_bundle(opened.path, out, signers[:2], options)
    assert files_of(out / "metadata") == before
    assert device(out, made.root)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    add_generation(opened, np.random.default_rng(1))
    assert export_bundle(opened.path, out, signers[:2], BundleOptions()).kind == "delta"
    assert len(files_of(out)) == 4 + 3  # nothing is left of the failed ones


def run(capsys, *arguments: object) -> tuple[int, dict]:
    code = main([*map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_the_commands(home, tmp_path, capsys):
    opened, _, _ = home
    k, out = tmp_path / "k", tmp_path / "out"
    (tmp_path / "secret").write_text("a secret\n")
    code, facts = run(capsys, "keys", "init", k, "--passphrase-file", tmp_path / "secret")
    assert (code, facts["threshold"], len(facts["keys"])) == (0, 2, 3)
    secret = ("--passphrase-file", tmp_path / "secret")
    key = [("--key", k / f"key-{n}.pem") for n in (1, 2, 3)]
    make = ("bundle", opened.path, out, *key[0])
    assert run(capsys, *make)[0] == 2  # no passphrase
    assert run(capsys, *make, *secret)[0] == 2  # no root
    code, facts = run(capsys, *make, *secret, "--root", k / "root.json", "--device-class", "x")
    assert (code, facts["standing"]["missing"], facts["kind"]) == (0, 1, "delta")
    code, facts = run(capsys, "keys", "show", out)
    assert (code, facts["missing"], len(facts["signed"]), facts["counter"]) == (0, 1, 1, 3)
    code, facts = run(capsys, "keys", "sign", out, *key[1], *secret, "--tar")
    assert (code, facts["missing"], facts["counter"]) == (0, 0, 3)
    first = facts["release"]
    assert facts["device_classes"] == ["x"]
    assert Path(facts["tar"]).is_file()
    code, facts = run(capsys, "keys", "sign", out, *key[0], *key[2], *secret, "--expires", "2d")
    assert (code, facts["counter"]) == (0, 3)
    assert facts["release"] > first
    assert run(capsys, "keys", "init", tmp_path / "n", "--count", 1, "--threshold", 1)[0] == 0
    rotate = (
        "keys",
        "rotate",
        out,
        "--add",
        tmp_path / "n" / "key-1.pub",
        *key[0],
        *key[2],
        *secret,
    )
    assert run(capsys, *rotate, "--remove", "0123456789")[0] == 2
    code, facts = run(capsys, *rotate, "--remove", k / "key-2.pub")
    assert (code, facts["root"], facts["missing"]) == (0, 2, 0)
    assert run(capsys, "keys", "sign", out, *key[1], *secret)[0] == 2
    assert run(capsys, "keys", "sign", tmp_path, *key[1], *secret)[0] == 4
    assert main(["keys", "sign", str(out), "--key", str(k / "key-1.pem"), *map(str, secret)]) == 0
    assert "Devices take release " in capsys.readouterr().out


def test_nobody_signs_a_time_to_come(home, tmp_path, capsys):
    """Two holders with one wrong clock: devices would take all later bundles for expired."""
    opened, made, signers = home
    late = datetime.now(UTC) + timedelta(days=400)
    out = tmp_path / "out"
    export_bundle(opened.path, out, signers[:1], FULL, root=made.root, now=late)
    before = files_of(out)
    assert main(["keys", "sign", str(out), "--key", str(made.files[1])]) == 4
    assert "set the clock that is wrong" in capsys.readouterr().err
    assert files_of(out) == before


def test_without_the_extra_one_line_says_what_to_install(home, tmp_path, capsys, monkeypatch):
    opened, made, _ = home
    monkeypatch.setattr(extra, "find_spec", lambda name: None)
    for command in (["keys", "init", str(tmp_path / "k")], ["bundle", str(opened.path), "o"]):
        code = main([*command, *(["--key", str(made.files[0])] if command[0] == "bundle" else [])])
        assert code == 2
        assert "pip install 'edge-pslora[signing]'" in capsys.readouterr().err
