"""torch.export files: what is taken, what is refused, and that no pickle is ever read."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edge_pslora.data.types import Samples
from edge_pslora.errors import ModelError
from edge_pslora.models.exported import PROGRAM_FILE
from edge_pslora.models.load import ModelOptions, import_base, load_model
from edge_pslora.models.types import LoadedModel
from edge_pslora.training.targets import find_targets

BATCH = ({0: torch.export.Dim("batch")},)


class Net(nn.Module):
    """One of everything that becomes a layer again, and some that do not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.ReLU(inplace=True)
        self.depth = nn.Conv2d(8, 8, 3, groups=8, padding="same")
        self.place = nn.Parameter(torch.randn(16, 8))
        self.codes = nn.Embedding(4, 8)
        self.drop = nn.Dropout(0.5)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.register_buffer("gain", torch.full((1,), 1.5), persistent=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        codes = self.codes((x.mean((1, 2, 3)) > 0).long())
        x = self.depth(self.act(self.norm(self.stem(x))))
        x = x.flatten(2).transpose(1, 2) + self.place
        x = self.block(self.drop(x)).mean(1) * self.gain + codes
        return self.head(x)


def save(folder: Path, model: nn.Module, *inputs: torch.Tensor, shapes: Any = BATCH) -> Path:
    path = folder / "net.pt2"
    torch.export.save(torch.export.export(model, inputs, dynamic_shapes=shapes), path)
    return path


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    model = Net()
    with torch.no_grad():
        model(torch.randn(8, 1, 4, 4))  # statistics of the norm
    return model.eval()


@pytest.fixture
def rows() -> Samples:
    x = np.random.default_rng(0).normal(size=(6, 1, 4, 4)).astype(np.float32)
    return Samples("array", "classification", x, np.array(list("ababab")))


def load(path: Path, samples: Samples, base: Path, **options: Any) -> LoadedModel:
    base.mkdir()
    return load_model(import_base(str(path), None, samples, ModelOptions(**options), base), base)


def test_it_computes_what_the_module_did_under_the_same_names(net, rows, tmp_path):
    loaded = load(save(tmp_path, net, torch.randn(2, 1, 4, 4)), rows, tmp_path / "base")
    assert loaded.source.kind == "exported"
    assert loaded.source.reference == "net.pt2"
    assert (tmp_path / "base" / PROGRAM_FILE).is_file()
    assert loaded.file_names.keys() | {"head.weight", "head.bias"} == set(net.state_dict())
    net.head = nn.Identity()
    inputs = loaded.encoder.encode(rows).batch(np.arange(6))
    assert torch.equal(loaded.backbone(**inputs), net(torch.from_numpy(rows.inputs)))
    assert loaded.feature_size == 8
    assert loaded.notes == ("The module's last layer head is replaced by a head.",)


def test_layers_are_targets_again(net, rows, tmp_path):
    model = load(save(tmp_path, net, torch.randn(2, 1, 4, 4)), rows, tmp_path / "base").backbone
    kinds = {t.name: t.kind for t in find_targets(model.model, ("*",))}
    assert kinds == {
        "stem": "conv2d",
        "codes": "embedding",
        "block.self_attn.out_proj": "linear",
        "block.linear1": "linear",
        "block.linear2": "linear",
    }
    assert isinstance(model.model.get_submodule("block.norm1"), nn.LayerNorm)
    assert {t.name for t in find_targets(model.model, ("auto",))} == {
        "block.linear1",
        "block.linear2",
    }


def test_tied_weights_and_shared_layers(rows, tmp_path):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.twice = nn.Linear(16, 16)
            self.one, self.two = nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)
            self.two.weight = self.one.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(self.one(self.twice(self.twice(x.flatten(1)))))

    path = save(tmp_path, Tied().eval(), torch.randn(2, 1, 4, 4))
    model = load(path, rows, tmp_path / "base").backbone.model
    assert [t.name for t in find_targets(model, ("auto",))] == ["twice"]
    with pytest.raises(ModelError, match=r"one is a Module"):
        find_targets(model, ("one",))


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


def rewrite(path: Path, change: Callable[[dict[str, bytes]], None], mode: int = 0) -> Path:
    """The file again with its records changed."""
    with zipfile.ZipFile(path) as file:
        records = {name: file.read(name) for name in file.namelist()}
    change(records)
    with zipfile.ZipFile(path, "w", mode) as file:
        for name, content in records.items():
            file.writestr(name, content)
    return path


def edit_json(end: str, change: Callable[[dict[str, Any]], None]) -> Callable[..., None]:
    def edit(records: dict[str, bytes]) -> None:
        name = next(n for n in records if n.endswith(end))
        content = json.loads(records[name])
        change(content)
        records[name] = json.dumps(content).encode()

    return edit


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


def test_what_has_to_be_exported_otherwise(net, rows, tmp_path):
    one = torch.randn(2, 1, 4, 4)

    def refused(message: str, model: nn.Module, *inputs: torch.Tensor, shapes: Any = BATCH) -> None:
        base = tmp_path / message.replace(" ", "")[:9]
        with pytest.raises(ModelError, match=message):
            load(save(tmp_path, model, *inputs, shapes=shapes), rows, base)

    class Still(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(16, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                x = x.flatten(1) * 2
            return self.net(x)

    class Two(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return (a + b).flatten(1)

    class Pair(nn.Module):
        def forward(self, a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return a.flatten(1), a.flatten(1)

    refused("a fixed batch of 2", net, one, shapes=None)
    refused("at most 16", net, one, shapes=({0: torch.export.Dim("batch", max=16)},))
    refused("2: a, b", Two(), one, one, shapes=(*BATCH, *BATCH))
    refused("2 outputs", Pair(), one)
    refused(r"has no torch\.no_grad", Still().eval(), one)
    refused("float32 input; found float64", net.double(), one.double())
    net.float()
    wide = nn.Flatten(), torch.randn(2, 1, 4, 4)
    refused("none among 1 operators; export it with torch.export.export alone", *wide)
    refused(r"samples of shape \[1, 9, 9\]", nn.Flatten(), torch.randn(2, 1, 9, 9))
    refused("training mode|buffer mutation|as they are", net.train(), one)


def test_text_is_refused(net, texts, tmp_path):
    with pytest.raises(ModelError, match="no tokenizer"):
        load(save(tmp_path, net, torch.randn(2, 1, 4, 4)), texts, tmp_path / "base")


def test_pictures_take_the_side_that_was_exported(images, tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 100, 5))
    path = save(tmp_path, model.eval(), torch.randn(2, 3, 12, 12))
    loaded = load(path, images, tmp_path / "base")
    assert loaded.source.options["image"]["size"] == 12
    assert loaded.encoder.encode(images).batch(np.arange(2))["pixel_values"].shape[2:] == (12, 12)
    with pytest.raises(ModelError, match=r"shape \[3, 12, 12\]"):
        load(path, images, tmp_path / "other", image_size=16)
