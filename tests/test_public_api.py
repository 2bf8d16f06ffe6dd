"""The public surface, exactly: what is added or lost here is a decision, not an accident."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from dataclasses import is_dataclass
from types import ModuleType

import pytest

import edge_pslora

PUBLIC = {
    "AdaptConfig",
    "AdaptResult",
    "BudgetConfig",
    "DriftDetector",
    "EdgePsloraError",
    "EligibilityConfig",
    "EngineConfig",
    "GateConfig",
    "HeadConfig",
    "LoraConfig",
    "StabilityConfig",
    "TrainConfig",
    "Workspace",
    "__version__",
    "adapt",
    "default_preset",
    "evaluate",
    "merge",
    "paper_preset",
    "sequential_preset",
}
DOCUMENTED = sorted(PUBLIC - {"__version__"})


def _signature(name: str) -> list[str]:
    return list(inspect.signature(getattr(edge_pslora, name)).parameters)


def test_the_surface_is_exactly_this():
    assert set(edge_pslora.__all__) == PUBLIC
    assert set(dir(edge_pslora)) >= PUBLIC
    with pytest.raises(AttributeError, match="no attribute 'adopt'"):
        edge_pslora.adopt  # noqa: B018


@pytest.mark.parametrize("name", DOCUMENTED)
def test_every_name_is_there_and_documented(name):
    value = getattr(edge_pslora, name)
    assert not isinstance(value, ModuleType)
    # a dataclass without a docstring gets one made of its signature
    generated = inspect.isclass(value) and is_dataclass(value)
    assert value.__doc__
    assert not (generated and value.__doc__.startswith(f"{name}("))


def test_public_methods_are_documented():
    for owner in (edge_pslora.Workspace, edge_pslora.AdaptResult, edge_pslora.EdgePsloraError):
        for name, member in vars(owner).items():
            function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
            if inspect.isfunction(function) and not name.startswith("_"):
                assert function.__doc__, f"{owner.__name__}.{name}"


def test_arguments_that_callers_rely_on():
    assert _signature("adapt") == [
        "data", "model", "weights", "adapters", "workspace", "task", "config", "read",
        "model_options", "progress", "eligibility",
    ]  # fmt: skip
    assert _signature("evaluate") == [
        "workspace", "data", "generation", "read", "compare_torch", "model",
    ]  # fmt: skip
    assert _signature("merge") == ["adapters", "base", "out", "rule", "max_update"]


def test_names_do_not_depend_on_the_order_of_imports():
    """A module of the same name as a public function would replace it once it is imported."""
    for home in set(edge_pslora._HOMES.values()):
        importlib.import_module(home)
    for name in DOCUMENTED:
        assert not isinstance(getattr(edge_pslora, name), ModuleType)


def test_importing_the_package_costs_nothing():
    code = (
        "import sys, edge_pslora; edge_pslora.AdaptConfig, edge_pslora.paper_preset\n"
        "loaded = {name.split('.')[0] for name in sys.modules}\n"
        "assert loaded.isdisjoint({'torch', 'numpy', 'onnx', 'onnxruntime', 'transformers'}), loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
