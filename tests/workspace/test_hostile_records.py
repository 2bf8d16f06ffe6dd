"""Whatever bytes come: a value that reads back as itself, or one line of the right class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_pslora.data.npyheader import HeaderError, read_npy_header
from edge_pslora.errors import AdapterError, BundleError, InputError, WorkspaceError
from edge_pslora.update import bundle, delta
from edge_pslora.workspace import layout, manifest, strict_json
from edge_pslora.workspace.pointer import read_pointer
from edge_pslora.workspace.tensor_header import build_header, parse_header
from edge_pslora.workspace.update_state import UpdateState, read_state, replace_state
from tests.torture.forged_data import npy

QUICK = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
SHA = "0" * 64
MANIFEST = manifest.to_dict(
    manifest.Manifest(2, 1, "t", "2026-01-31T12:00:00Z", "", SHA, ("a", "b"), counter=3)
)
BUNDLE = {
    "format_version": 1, "kind": "full", "counter": 3, "signed_at": "2026-01-31T12:00:00Z",
    "device_classes": ["a"], "parent_model": None, "header": {}, "manifest": MANIFEST,
    "payload": {"model.onnx": {"bytes": 1, "sha256": SHA}}, "result": {},
}  # fmt: skip
DELTA = {
    "generation": 1, "parent": None, "session": 1, "rule": "none", "scaling": 1.0, "factors": "int8",
    "layers": [["a", "linear", 2]], "widened": [], "base_digest": SHA, "base_model": [1, SHA],
    "parent_model": [1, SHA], "model": [1, SHA], "model_metadata": {}, "onnx": None, "labels": [],
    "task_type": "classification",
}  # fmt: skip
SPECS = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def changed(content: dict[str, Any], data: st.DataObject) -> bytes:
    """The record with some fields replaced, taken away or added."""
    copy = json.loads(json.dumps(content))
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(st.sampled_from(sorted(copy)) if copy else st.text(max_size=5))
        if data.draw(st.booleans()):
            copy.pop(key, None)
        copy[data.draw(st.just(key) | st.text(max_size=5))] = data.draw(VALUES)
    return json.dumps(copy).encode("utf-8", "surrogatepass")


def one_line(problem: InputError, kind: type[InputError]) -> None:
    assert type(problem) is kind
    assert "\n" not in str(problem)


@QUICK
@given(st.data())
def test_manifests(data: st.DataObject) -> None:
    try:
        found = manifest.decode(changed(MANIFEST, data), "m")
    except WorkspaceError as problem:
        one_line(problem, WorkspaceError)
        return
    assert manifest.decode(manifest.encode(found), "again") == found


@QUICK
@given(st.data())
def test_bundles(data: st.DataObject) -> None:
    try:
        found = bundle.decode(changed(BUNDLE, data), "b")
    except BundleError as problem:
        one_line(problem, BundleError)
        return
    assert bundle.decode(bundle.encode(found), "again") == found


@QUICK
@given(st.data())
def test_deltas(data: st.DataObject) -> None:
    try:
        found = delta.decode(changed(DELTA, data).decode("utf-8", "replace"), "d")
    except AdapterError as problem:
        one_line(problem, AdapterError)
        return
    assert delta.decode(delta.encode(found), "again") == found


@QUICK
@given(st.data())
def test_update_states(tmp_path: Path, data: st.DataObject) -> None:
    replace_state(tmp_path, UpdateState("board", 3))
    path = tmp_path / layout.UPDATES / layout.UPDATE_STATE
    path.write_bytes(changed(json.loads(path.read_bytes()), data))
    try:
        found = read_state(tmp_path)
    except WorkspaceError as problem:
        one_line(problem, WorkspaceError)
        return
    assert found is not None
    replace_state(tmp_path, found)
    assert read_state(tmp_path) == found


@QUICK
@given(st.binary(max_size=90) | st.from_regex(r"[0-9]{5,10} [0-9a-f]{64}\n?", fullmatch=True))
def test_pointers(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / layout.CURRENT
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    try:
        pointer = read_pointer(tmp_path)
    except WorkspaceError as problem:
        one_line(problem, WorkspaceError)
        return
    assert pointer.number >= 0
    assert len(pointer.manifest_sha256) == 64


@QUICK
@given(st.data())
def test_safetensors_headers(data: st.DataObject) -> None:
    try:
        found = parse_header(changed(SPECS, data), 8, "h")
    except WorkspaceError as problem:
        one_line(problem, WorkspaceError)
        return
    assert sum(spec.bytes for spec in found.specs.values()) == 8
    text = build_header(found.specs, found.metadata)[8:]
    assert parse_header(text, 8, "again").specs == found.specs


@QUICK
@given(st.text(st.sampled_from("{}()[]',:<f48iOU_ shapedecrtno=TruFals-*9"), max_size=80))
def test_npy_headers(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(npy(text))
    with path.open("rb") as stream:
        try:
            header = read_npy_header(stream)
        except HeaderError as problem:
            message = str(problem)
        else:
            message = ""
            assert header.nbytes >= 0
    assert "\n" not in message


def test_a_megabyte_of_keys_with_one_again_is_refused_at_once() -> None:
    """It took minutes once: every key was counted for every key."""
    keys = ",".join(f'"{number:x}":0' for number in range(100_000))
    with pytest.raises(WorkspaceError, match="'1869f' is repeated"):
        strict_json.parse(f'{{{keys},"1869f":1}}'.encode(), "x")
