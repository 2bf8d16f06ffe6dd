"""All of a device's commands where torch and the package onnx cannot be imported, in one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edge_pslora.device import local_gate
from edge_pslora.exporters.export import export_generation
from edge_pslora.exporters.export_bundle import BundleOptions, export_bundle
from edge_pslora.exporters.export_options import ExportOptions
from tests.device.conftest import judged_here
from tests.device.device_kit import Device
from tests.publisher_kit import add_generation, make_publisher
from tests.signing.signing_kit import keys_in

CHILD = """
import json, sys
from importlib.abc import MetaPathFinder

ABSENT = {"torch", "onnx", "onnx_ir", "onnxscript", "transformers", "safetensors", "peft"}

class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Absent())
from edge_pslora.cli.main import main
for command in json.loads(sys.argv[1]):
    light = {"numpy", "onnxruntime"} - sys.modules.keys()
    code = main([*command, "--json"])
    assert not ABSENT & sys.modules.keys()
    print(json.dumps([code, sorted(light & sys.modules.keys())]))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("without-torch")
    opened = make_publisher(folder / "pub")
    if len(opened.generations()) < 2:
        add_generation(opened)
    new, signers = keys_in(folder / "keys")
    root = new.files[0].parent / "root.json"
    full = BundleOptions(kind="full", with_base=True, learn=True)
    export_bundle(folder / "pub", folder / "one", signers[:2], full, root=root, generation=1)
    delta = BundleOptions(kind="delta", counter=2, learn=True)
    export_bundle(folder / "pub", folder / "two", signers[1:], delta, root=root, generation=2)
    export_generation(folder / "pub", folder / "delta", ExportOptions(format="delta"), generation=2)
    return folder


def test_every_command_of_a_device(home, tmp_path):
    device, root = tmp_path / "device", home / "keys/root.json"
    check = (
        f"{sys.executable} -c 'import os; assert os.path.exists(os.environ[\"EDGE_PSLORA_MODEL\"])'"
    )
    base = home / "pub/base"
    generations = [layout_of(home, number) for number in (1, 2)]
    commands = [
        ["verify", home / "one", "--root", root],
        ["apply", device, "--from", home / "one", "--root", root, "--health-check", check],
        ["apply", device, "--from", home / "one"],
        ["status", device],
        ["verify", home / "two", "--workspace", device],
        ["apply", device, "--from", home / "two", "--no-check"],
        ["status", device, "--verify"],
        ["rollback", device],
        ["apply", device],
        [
            *("replay", home / "delta", "--base", base, "--parent", generations[0]),
            *("--out", tmp_path / "replayed.safetensors"),
        ],
        [
            "merge",
            generations[1] / "adapter",
            "--base",
            base,
            "--out",
            tmp_path / "merged.safetensors",
        ],
    ]
    text = json.dumps([[str(part) for part in command] for command in commands])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, text], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    facts, ends = lines[::2], lines[1::2]
    assert [code for code, _ in ends] == [0] * len(commands), facts
    # what serves is the publisher's in every byte, also by the delta
    for number, generation in enumerate(generations, start=1):
        for name in ("model.safetensors", "model.onnx"):
            mine = device / "generations" / f"{number:06d}" / name
            assert mine.read_bytes() == (generation / name).read_bytes()
    replayed = (tmp_path / "replayed.safetensors").read_bytes()
    assert replayed == (generations[1] / "model.safetensors").read_bytes()
    assert (facts[1]["generation"], facts[5]["generation"], facts[7]["generation"]) == (1, 2, 1)
    assert facts[6]["updates"]["counter"] == 2
    # nothing is imported that the command has no use for
    assert ends[0][1] == []


def layout_of(home: Path, number: int) -> Path:
    return home / "pub/generations" / f"{number:06d}"


def test_a_timer_that_finds_nothing_new_imports_no_numpy(home, tmp_path):
    device = Device(tmp_path / "device", home / "keys/root.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local_gate, "_run", judged_here)
        device.apply(home / "one")
    commands = [["status", str(device.path)], ["apply", str(device.path)]]
    commands.append(["apply", str(device.path), "--from", str(home / "one")])
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(commands)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    ends = [json.loads(line) for line in done.stdout.splitlines()][1::2]
    assert ends == [[0, []]] * 3
