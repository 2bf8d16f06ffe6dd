"""The layering, read from the source, and what a torch-free device loads, seen in a subprocess."""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {
    "edge_pslora": "edge_pslora",
    "exporters": "edge_pslora.exporters",
    "cli": "edge_pslora.cli",
}
GROUND = {"errors", "config", "version", "progress", "units"}
LEAVES = GROUND | {"core", "data", "models", "tasks"}
PARTS = LEAVES | {"training", "exporters", "workspace", "update", "report", "pages", "charts"}

# part -> the other parts that it may import; whatever is not listed here does not exist
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "version": set(),
    "progress": set(),
    "demo_data": set(),
    "config": {"errors"},
    "units": {"errors"},
    "charts": {"units", "errors"},
    "report": {"units", "errors", "pages"},
    "core": {"config", "errors"},
    "data": GROUND,
    "workspace": GROUND | {"core"},
    "tasks": GROUND | {"core", "data"},
    "models": GROUND | {"core", "data", "tasks", "workspace"},
    "training": LEAVES,
    "update": GROUND | {"core", "workspace"},
    "exporters": LEAVES | {"workspace", "update", "signing"},
    "signing": GROUND | {"workspace"},
    "device": GROUND | {"core", "data", "workspace", "update", "signing", "exporters"},
    "merge_plan": GROUND | {"workspace"},
    "merge_tiles": GROUND | {"core", "workspace", "merge_plan"},
    "merge_files": GROUND | {"workspace", "merge_plan", "merge_tiles"},
    "pipeline": PARTS,
    "evaluation": PARTS | {"pipeline"},
    "inspection": GROUND | {"data", "models", "workspace", "training"},
    "pages": GROUND | {"charts", "workspace"},
    "compare": LEAVES | {"training", "workspace", "charts", "pages"},
    "demo": PARTS | {"pipeline", "evaluation", "demo_data"},
    "cli": PARTS
    | {
        "pipeline",
        "evaluation",
        "inspection",
        "demo",
        "merge_files",
        "device",
        "signing",
        "compare",
    },
    "edge_pslora": PARTS | {"pipeline", "evaluation", "merge_files"},
}
FOREIGN = {
    "core": {"torch", "numpy"},
    "data": {"numpy", "PIL", "soundfile", "pyarrow"},
    "tasks": {"numpy", "torch"},
    "workspace": {"numpy", "ml_dtypes"},
    "update": {"numpy", "ml_dtypes"},
    "signing": {"tuf", "securesystemslib", "cryptography"},
    "device": {"numpy"},
    "charts": {"matplotlib"},
    "compare": {"numpy", "torch", "scipy"},
    "config": set(),
    "errors": set(),
}
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
HEAVY = {"torch", "onnx", "onnxscript", "transformers", "peft"}
TORCH_FREE = [
    "edge_pslora",
    "edge_pslora.workspace.workspace",
    "edge_pslora.merge_files",
    "edge_pslora.exporters.run",
    "edge_pslora.exporters.export",
    "edge_pslora.exporters.generate",
    "edge_pslora.data.read",
    "edge_pslora.inspection.source",
    "edge_pslora.core.merge",
    "edge_pslora.core.replay",
    "edge_pslora.update.replay",
    "edge_pslora.exporters.replay_onnx",
    "edge_pslora.device.apply",
    "edge_pslora.device.assemble",
    "edge_pslora.device.gate_child",
    "edge_pslora.device.verify",
    "edge_pslora.signing.release",
    "edge_pslora.core.drift",
    "edge_pslora.core.gate",
    "edge_pslora.report",
    "edge_pslora.pages.workspace",
    "edge_pslora.compare.statistics",
    "edge_pslora.cli.main",
]


@dataclass(frozen=True)
class Source:
    path: Path
    part: str
    tree: ast.Module

    def imports(self) -> Iterator[str]:
        """Dotted names of all imported modules, wherever in the file."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{self.path}: a relative import"
                if node.module == "edge_pslora":  # from edge_pslora import part
                    yield from (f"edge_pslora.{alias.name}" for alias in node.names)
                else:
                    yield node.module or ""


def _sources() -> list[Source]:
    found = []
    for folder, package in PACKAGES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            inside = path.relative_to(ROOT / folder).with_suffix("").parts
            names = [*package.split("."), *(n for n in inside if n != "__init__")]
            part = names[1] if len(names) > 1 else names[0]
            found.append(Source(path, part, ast.parse(path.read_text(encoding="utf-8"))))
    return found


SOURCES = _sources()


def test_imports_point_one_way():
    for source in SOURCES:
        for name in source.imports():
            if not name.startswith("edge_pslora."):
                continue
            other = name.split(".")[1]
            assert other == source.part or other in ALLOWED[source.part], (
                f"{source.path.relative_to(ROOT)} imports {name}"
            )


def test_the_table_above_has_no_way_back():
    done: set[str] = set()
    waiting = dict(ALLOWED)
    while waiting:
        free = {part for part, needs in waiting.items() if needs <= done}
        assert free, f"a circle among {sorted(waiting)}"
        done |= free
        waiting = {part: needs for part, needs in waiting.items() if part not in free}


def test_pure_parts_import_nothing_foreign():
    for source in SOURCES:
        allowed = FOREIGN.get(source.part)
        if allowed is None:
            continue
        for name in source.imports():
            top = name.split(".")[0]
            known = top in sys.stdlib_module_names or top in ("edge_pslora", "__future__")
            assert known or top in allowed, f"{source.path.relative_to(ROOT)} imports {name}"


def test_core_has_no_clock_no_files_and_no_global_randomness():
    banned = {"time", "datetime", "os", "pathlib", "logging", "random", "io", "secrets", "tempfile"}
    for source in SOURCES:
        if source.part == "core":
            assert banned.isdisjoint(name.split(".")[0] for name in source.imports()), source.path
            calls = {ast.unparse(n.func) for n in ast.walk(source.tree) if isinstance(n, ast.Call)}
            assert calls.isdisjoint({"open", "print", "torch.manual_seed", "np.random.seed"})


def test_nothing_is_pickled():
    for source in SOURCES:
        assert PICKLES.isdisjoint(name.split(".")[0] for name in source.imports()), source.path
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                where = f"{source.path.relative_to(ROOT)}:{node.lineno}"
                assert called not in ("torch.load", "torch.save", "eval", "exec"), where
                if called in ("np.load", "numpy.load"):
                    keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
                    assert keywords.get("allow_pickle") == "False", where


def test_broad_exceptions_are_caught_in_one_place_only():
    found = [
        source.path.relative_to(ROOT).as_posix()
        for source in SOURCES
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or ast.unparse(node.type) == "Exception")
    ]
    assert found == ["cli/main.py"]


def test_files_stay_small():
    lengths = {s.path: len(s.path.read_text(encoding="utf-8").splitlines()) for s in SOURCES}
    assert statistics.median(lengths.values()) <= 150
    for folder in ("tests", "examples", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            lengths[path] = len(path.read_text(encoding="utf-8").splitlines())
    assert {str(path): n for path, n in lengths.items() if n > 400} == {}


def test_what_runs_on_a_device_loads_no_torch():
    """One process for all of them, one after the other: the first that loads torch is the one named."""
    code = (
        "import importlib, sys\n"
        "for module in sys.argv[1:]:\n"
        "    importlib.import_module(module)\n"
        "    print(module, *sorted({n.split('.')[0] for n in sys.modules}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *TORCH_FREE],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [module for module, *_ in lines] == TORCH_FREE
    for module, *loaded in lines:
        assert HEAVY.isdisjoint(loaded), module
