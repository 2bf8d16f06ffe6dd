"""Every example runs offline on a CPU, as its header says, and in well under a minute."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from edge_pslora import AdaptConfig, TrainConfig, adapt
from edge_pslora.cli.main import main
from edge_pslora.demo_data import load_digits
from edge_pslora.errors import GateRefusedError, UsageError
from edge_pslora.exporters.export_options import ExportOptions
from edge_pslora.exporters.onnx_export import OnnxFiles
from edge_pslora.exporters.run import open_onnx
from edge_pslora.pipeline import export_cache
from edge_pslora.pipeline.exporting import export_with_model
from tests.families import speech_kit
from tests.pipeline.pipeline_kit import TOPICS

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
# networks for `adapt --model`, tested in tests/models, with nothing to run by themselves
MODULES = {"mobilenet_v1.py"}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def _run(name: str, *arguments: object) -> list[str]:
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *map(str, arguments)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start < 60
    return done.stdout.splitlines()


def _number(line: str) -> float:
    return float(line.split(":")[-1].split()[0])


def test_every_example_is_run_here():
    code = Path(__file__).read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*.py"):
        header = path.read_text(encoding="utf-8").split('"""')
        assert len(header) > 2, f"{path.name} has no header"
        assert path.name in MODULES or f'_run("{path.name}"' in code, path.name


def test_adapt_table_and_then_switch_between_its_generations(tmp_path):
    lines = _run("adapt_table.py", tmp_path)
    assert sum("promoted: True" in line for line in lines) == 3
    assert min(_number(line) for line in lines if "accuracy" in line) > 0.85
    assert len({line for line in lines if "history" in line}) == 1
    assert (tmp_path / "workspace" / "generations" / "000003" / "model.onnx").is_file()
    # what is no language model has nothing to keep of earlier tokens
    arguments = ("export", tmp_path / "workspace", tmp_path / "out", "--format", "onnx")
    assert main([*map(str, arguments), "--kv-cache"]) == UsageError.exit_code
    assert not (tmp_path / "out").exists()
    export_with_model(
        tmp_path / "workspace", tmp_path / "out", ExportOptions("ort-adapter", generations=3)
    )
    images, labels = load_digits()
    np.savez(tmp_path / "test.npz", x=images.reshape(len(images), -1)[::4], y=labels[::4])
    lines = _run("switch_adapters.py", tmp_path / "out", tmp_path / "test.npz")
    assert [line.split(", ")[1] for line in lines] == ["4 labels", "7 labels", "10 labels"]
    assert _number(lines[0]) < 0.45 < 0.85 < _number(lines[2])
    lines = _run("watch_for_drift.py", tmp_path / "workspace", tmp_path / "test.npz")
    assert lines[0] == "1000 images as before: 0 alarms"
    assert 0 < _number(lines[1]) <= 200


def test_own_module_and_then_run_on_a_device(tmp_path):
    lines = _run("own_module.py", tmp_path)
    assert next(line for line in lines if line.startswith("generation 1")).endswith("5 6 7 8 9")
    assert "0.9" in next(line for line in lines if line.startswith("generation 2"))
    lines = _run("run_on_device.py", tmp_path / "workspace", tmp_path / "test.npz")
    assert lines[0].split(": ")[1] == "10 labels, 450 samples"
    assert _number(lines[-1]) > 0.9


def test_own_module_from_python(tmp_path):
    lines = _run("own_module_from_python.py", tmp_path)
    assert _number(next(line for line in lines if line.startswith("generation 2"))) > 0.9
    assert "as it was: True" in lines[-1]
    assert (tmp_path / "workspace" / "generations" / "000002" / "model.onnx").is_file()


def test_the_device_script_needs_onnxruntime_and_numpy_only():
    source = (EXAMPLES / "run_on_device.py").read_text(encoding="utf-8")
    imported = {
        line.split()[1].split(".")[0] for line in source.splitlines() if "import " in line[:7]
    }
    imported |= {line.split()[1] for line in source.splitlines() if line.startswith("from ")}
    assert imported <= {"__future__", "json", "os", "sys", "pathlib", "numpy", "onnxruntime"}


def test_generate_on_a_device(tmp_path, monkeypatch):
    """From texts to a file with a cache, which says what the file without one says."""
    base = speech_kit.smollm(tmp_path / "base", num_hidden_layers=1)
    words = TOPICS["sport"].split() * 2
    texts = [" ".join(words[i % 10 : i % 10 + 8]) for i in range(150)]
    data = tmp_path / "one.md"
    data.write_text("\n\n".join(texts), encoding="utf-8")
    config = AdaptConfig(train=TrainConfig(epochs=2, max_length=16, learning_rate=5e-3))
    result = adapt(data, model=str(base), workspace=tmp_path / "w", config=config)
    assert result.promoted, result.reason
    out = tmp_path / "out"
    arguments = ("export", tmp_path / "w", out, "--format", "onnx", "--kv-cache", "--quiet")
    assert main([*map(str, arguments)]) == 0
    lines = _run("generate_on_device.py", out, "ball goal", 12)
    tokens = [int(token) for token in lines[0].split()[1:]]
    assert len(tokens) == 12
    assert lines[1].startswith("text: ball goal ")

    ids = [speech_kit.VOCABULARY[word] for word in ("<s>", "ball", "goal")]
    prompts = [ids, ids[:1], [*ids, *ids[1:], *ids[1:]]]
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from edge_pslora.exporters.generate import generate, open_onnx\n"
        f"print([generate(open_onnx(Path(path)), {prompts}, 12) for path in sys.argv[1:]])\n"
        "assert 'transformers' not in sys.modules\n"
    )
    files = [out / "model.onnx", result.folder / "model.onnx"]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, files)], capture_output=True, text=True, check=True
    )
    with_cache, without = json.loads(done.stdout)
    assert with_cache == without
    assert with_cache[0] == tokens

    cached, published = (open_onnx(file).metadata for file in files)
    own = {name: cached[name] for name in cached if name not in published}
    assert own == {"pslora.kv_cache": '{"head_dim": 8, "heads": 2, "layers": 1}'}
    assert {name: cached[name] for name in published} == published
    record = json.loads((out / "export.json").read_text(encoding="utf-8"))
    assert record["kv_cache"] == {"head_dim": 8, "heads": 2, "layers": 1}
    assert record["max_abs_error"] < 1e-4

    def with_other_weights(*positional: object, **named: object) -> OnnxFiles:
        proto = onnx.load(out / "model.onnx")
        weight = next(t for t in proto.graph.initializer if t.name.endswith("v_proj.weight"))
        changed = 1.001 * onnx.numpy_helper.to_array(weight)
        weight.CopyFrom(onnx.numpy_helper.from_array(changed, weight.name))
        onnx.save(proto, tmp_path / "other.onnx")
        return OnnxFiles(tmp_path / "other.onnx", None, {})

    monkeypatch.setattr(export_cache, "export_with_cache", with_other_weights)
    with pytest.raises(GateRefusedError, match=r"--kv-cache, whole texts: .* nothing was written"):
        export_with_model(
            tmp_path / "w", tmp_path / "refused", ExportOptions("onnx", kv_cache=True)
        )
    assert not (tmp_path / "refused").exists()


@pytest.mark.slow
def test_compare_merge_rules():
    lines = _run("compare_merge_rules.py", "--epochs", 1)
    rows = [line.rsplit(maxsplit=4) for line in lines[2:]]
    assert [row[0] for row in rows] == [
        *("max_magnitude", "cumulative", "constructive", "average", "none"),
        "none, no stability loss",
    ]
    for _, sgd, _, analytic, _ in rows:
        assert float(analytic) > float(sgd)
