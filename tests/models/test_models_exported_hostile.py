"""Hostile and damaged .pt2 files: no pickle is read, nothing in them is run."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edge_pslora.data.types import Samples
from edge_pslora.errors import ModelError
from edge_pslora.models.load import ModelOptions, import_base
from tests.models.pt2_kit import edit_json, load, new_net, new_rows, rewrite, save


@pytest.fixture
def net() -> nn.Module:
    return new_net()


@pytest.fixture
def rows() -> Samples:
    return new_rows()


LOADING = """
import sys
from pathlib import Path
import torch
from edge_pslora.models import exported
from edge_pslora.models.pt2_archive import read_archive
from edge_pslora.models.pt2_program import parse_program
from edge_pslora.models.pt2_module import ExportedNet
path = Path(sys.argv[1])
def load():
    archive = read_archive(path)
    return ExportedNet(parse_program(archive, path), archive.tensors, layers=True)
load()  # what torch imports late is imported by now
seen = []
sys.addaudithook(lambda event, _: seen.append(event))
torch.load = None
net = load()
banned = {"pickle.find_class", "compile", "exec", "os.system", "subprocess.Popen"}
found = sorted(banned & set(seen))
assert "open" in seen
assert len(list(net.parameters())) > 10
if len(sys.argv) > 2:
    torch.export.load(path)
"""


def _events(path: Path, *more: str, load: str = "torch.load = None") -> str:
    code = LOADING.replace("torch.load = None", load) + "\nprint(sorted(banned & set(seen)))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(path), *more],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_loading_reads_no_pickle_and_evaluates_nothing(net, tmp_path):
    path = save(tmp_path, net, torch.randn(2, 1, 4, 4))
    assert _events(path) == "[]"
    # the hook can see it: torch's own loader evaluates strings, the reason why it is not used
    assert "compile" in _events(path, "too", load="")


def test_code_in_the_file_is_never_run(net, rows, tmp_path):
    """Where torch's own loader would run it: sizes, guards, the pickle of the sample inputs."""
    mark = tmp_path / "run"
    code = f"__import__('pathlib').Path({str(mark)!r}).touch()"
    path = save(tmp_path, net, torch.randn(2, 1, 4, 4))

    def plant(records: dict[str, bytes]) -> None:
        def edit(content: dict[str, Any]) -> None:
            content["guards_code"] = [code]
            values = content["graph_module"]["graph"]["tensor_values"]
            values["conv2d"]["sizes"][0]["as_expr"]["expr_str"] = code

        edit_json(PROGRAM, edit)(records)
        records["net/data/sample_inputs/model.pt"] = b"cbuiltins\nexec\n(V%btR." % code.encode()

    loaded = load(rewrite(path, plant), rows, tmp_path / "base")
    assert loaded.feature_size == 8
    assert not mark.exists()


def weight(content: dict[str, Any]) -> dict[str, Any]:
    return content["config"]["head.weight"]


def node(content: dict[str, Any], **values: Any) -> None:
    content["graph_module"]["graph"]["nodes"][0].update(values)


CONFIG, PROGRAM = "_weights_config.json", "models/model.json"
HOSTILE = {
    "pickled tensor": (edit_json(CONFIG, lambda c: weight(c).update(use_pickle=True)), "pickled"),
    "beyond its bytes": (
        edit_json(CONFIG, lambda c: weight(c)["tensor_meta"].update(storage_offset={"as_int": 9})),
        "values for head.weight",
    ),
    "negative stride": (
        edit_json(
            CONFIG,
            lambda c: weight(c)["tensor_meta"].update(strides=[{"as_int": -8}, {"as_int": 1}]),
        ),
        "-8 is no size",
    ),
    "a giant made of one number": (
        edit_json(
            CONFIG,
            lambda c: weight(c)["tensor_meta"].update(
                sizes=[{"as_int": 10**6}] * 2, strides=[{"as_int": 0}] * 2
            ),
        ),
        "1000000000000 values for head.weight",
    ),
    "many views": (
        edit_json(
            CONFIG,
            lambda c: c["config"].update(
                {
                    f"v{i}": weight(c)
                    | {
                        "tensor_meta": weight(c)["tensor_meta"]
                        | {"sizes": [{"as_int": 24 - i % 3}, {"as_int": 1}]}
                        | {"strides": [{"as_int": 1}, {"as_int": i}]}
                    }
                    for i in range(5000)
                }
            ),
        ),
        "many views of the same bytes",
    ),
    "path as a record": (
        edit_json(CONFIG, lambda c: weight(c).update(path_name="../../../etc/passwd")),
        "raw bytes",
    ),
    "name of an attribute": (
        edit_json(CONFIG, lambda c: c["config"].update({"__class__": weight(c)})),
        None,
    ),
    "python function": (
        edit_json(PROGRAM, lambda c: node(c, target="torch.hub.load")),
        "operators of torch.ops.aten; found torch.hub.load",
    ),
    "reads a file": (
        edit_json(PROGRAM, lambda c: node(c, target="torch.ops.aten.from_file.default")),
        "from_file",
    ),
    "writes to an output": (
        edit_json(PROGRAM, lambda c: node(c, target="torch.ops.aten.add.out")),
        "return their result",
    ),
    "custom operator": (
        edit_json(PROGRAM, lambda c: node(c, target="torch.ops.mine.op.default")),
        "torch.ops.mine.op",
    ),
    "random numbers": (
        edit_json(PROGRAM, lambda c: node(c, target="torch.ops.aten.rand_like.default")),
        "training mode",
    ),
    "nested graph": (
        edit_json(
            PROGRAM,
            lambda c: node(c, inputs=[{"name": "g", "arg": {"as_graph": {}}, "kind": 1}]),
        ),
        "an argument as_graph",
    ),
    "newer schema": (
        edit_json(PROGRAM, lambda c: c["schema_version"].update(major=9)),
        "schema version 8",
    ),
    "escaping record": (lambda r: r.update({"net/../../x": b""}), "plain record names"),
    "two roots": (lambda r: r.update({"other/x": b""}), "one folder"),
    "old weights": (
        lambda r: r.update({"net/data/weights/model.pt": b""}),
        "pickled ones in data/weights/model.pt",
    ),
    "no weights": (
        lambda r: r.pop("net/data/weights/model_weights_config.json"),
        "_weights_config.json; found none",
    ),
    "not json": (lambda r: r.update({"net/models/model.json": b"[" * 99_999}), "JSON in"),
    "compiled only": (
        lambda r: r.update({"net/data/aotinductor/m/m.so": r.pop("net/models/model.json")}),
        "compiled code only",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_and_damaged_files(net, rows, tmp_path, case):
    change, message = HOSTILE[case]
    path = rewrite(save(tmp_path, net, torch.randn(2, 1, 4, 4)), change)
    (tmp_path / "base").mkdir()
    if message is None:  # a tensor that the graph does not name is never registered
        import_base(str(path), None, rows, ModelOptions(), tmp_path / "base")
        return
    with pytest.raises(ModelError, match=message) as caught:
        import_base(str(path), None, rows, ModelOptions(), tmp_path / "base")
    assert "\n" not in str(caught.value)


def test_compressed_records_are_refused(net, rows, tmp_path):
    path = rewrite(
        save(tmp_path, net, torch.randn(2, 1, 4, 4)), lambda r: None, zipfile.ZIP_DEFLATED
    )
    with pytest.raises(ModelError, match="not compressed"):
        load(path, rows, tmp_path / "base")


def test_truncated_and_foreign_files(net, rows, tmp_path):
    path = save(tmp_path, net, torch.randn(2, 1, 4, 4))
    whole = path.read_bytes()
    parts = (b"", whole[:-100], whole[: len(whole) // 2], b"PK" * 50)
    for number, content in enumerate(parts):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"net\.pt2"):
            load(path, rows, tmp_path / f"base{number}")
    path.write_bytes(whole)
    rewrite(path, lambda r: r.update({"net/archive_format": b"", "net/data.pkl": b""}))
    with pytest.raises(ModelError, match="TorchScript"):
        load(path, rows, tmp_path / "base")
