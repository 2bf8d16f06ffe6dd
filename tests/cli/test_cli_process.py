"""The command as a process: what it imports, pipes, signals, terminals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "onnx", "onnxruntime", "transformers")
RUN = "import sys; from edge_pslora.cli.main import main; code = main(sys.argv[1:])"
REPORT_IMPORTS = (
    f"{RUN}; sys.stderr.write(','.join({{m.split('.')[0] for m in sys.modules}})); sys.exit(code)"
)
# SIGINT: tests that run in the background of a shell hand down an ignored one.
WAIT_IN_THE_PIPELINE = """
import signal, sys, time, types
signal.signal(signal.SIGINT, signal.default_int_handler)
fake = types.ModuleType("edge_pslora.pipeline")
def adapt(*args, **options):
    sys.__stderr__.write("working\\n")
    sys.__stderr__.flush()
    time.sleep(60)
fake.adapt = adapt
sys.modules["edge_pslora.pipeline"] = fake
from edge_pslora.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def _python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", code, *arguments]


def _imports(*arguments: str, code: int = 0) -> set[str]:
    done = subprocess.run(
        _python(REPORT_IMPORTS, *arguments), capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    return set(done.stderr.split("\n")[-1].split(","))


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["adapt", "--help"], ["merge", "--help"], ["export", "--help"]],
    ids=" ".join,
)
def test_help_and_version_import_nothing_heavy(arguments: list[str]) -> None:
    assert _imports(*arguments).isdisjoint({*HEAVY, "numpy", "jinja2"})


def test_what_serves_on_a_device_needs_no_torch(workspace: Path) -> None:
    assert _imports("status", str(workspace), "--verify").isdisjoint(HEAVY)
    assert _imports("rollback", str(workspace)).isdisjoint(HEAVY)
    page = workspace.parent / "page.html"
    assert _imports("report", str(workspace), "--out", str(page)).isdisjoint(HEAVY)
    gone = [str(workspace / "none"), "--base", "b", "--out", str(workspace.parent / "o")]
    assert _imports("merge", *gone, code=4).isdisjoint(HEAVY)


def test_the_installed_command_answers() -> None:
    command = Path(sys.executable).with_name("edge-pslora")
    if not command.exists():
        pytest.skip("installed without its script")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("edge-pslora ")
    done = subprocess.run([command, "adapt"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize("as_json", [False, True])
def test_interrupting_ends_with_one_line_and_130(as_json: bool) -> None:
    flags = ["--json"] if as_json else []
    with subprocess.Popen(
        _python(WAIT_IN_THE_PIPELINE, "adapt", "d", *flags),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "working\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    if as_json:
        assert json.loads(out)["error"] == "Interrupted"
        assert err == ""
    else:
        assert out == ""
        assert err.startswith("edge-pslora: interrupted")
        assert err.count("\n") == 1


def test_a_closed_pipe_is_no_traceback(workspace: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        _python(RUN + "; sys.exit(code)", "status", str(workspace)),
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_labels_print_in_any_locale(workspace: Path) -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    greek = workspace.rename(workspace.with_name("Ελλάδα"))
    done = subprocess.run(
        _python(RUN + "; sys.exit(code)", "status", str(greek)),
        env=environment,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\\u0395" in done.stdout


def test_export_needs_no_torch(workspace: Path) -> None:
    out = str(workspace.parent / "out")
    imported = _imports("export", str(workspace), out, "--format", "onnx", code=2)
    assert imported.isdisjoint(HEAVY)
