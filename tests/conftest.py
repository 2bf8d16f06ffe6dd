"""One thread everywhere: the tests' networks are tiny, and results do not depend on the machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings

from tests.export_kit import keep_what_is_loaded
from tests.torch_free import TorchFree, torch_free_process

os.environ.setdefault("OMP_NUM_THREADS", "1")
# no test is about time: on a busy machine a case of two milliseconds may take three hundred
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # for children that load onnxruntime alone


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules with slow tests first, the slowest of all before: no worker waits for another's last.

    Whole modules, so that what a module's tests share is made once.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow") is not None}
    items.sort(key=lambda item: (item.path not in slow, "torture" not in item.path.parts))


_MANY = 20  # modules that were imported since
_looked_at: dict[str, Any] = {}


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """What stays until the end is taken from the collector: between modules, and after many imports.

    Not during a test: what its own exports leave is garbage soon, and would stay too.
    """
    modules = len(sys.modules)
    if _looked_at.get("at") != item.path or modules - _looked_at["modules"] >= _MANY:
        keep_what_is_loaded()
        _looked_at.update(at=item.path, modules=modules)


@pytest.fixture(scope="session")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchFree]:
    """onnxruntime where there is no torch."""
    with torch_free_process(tmp_path_factory.mktemp("device")) as process:
        yield process


@pytest.fixture(scope="session", autouse=True)
def _fast_exports() -> None:
    if "onnxscript" in sys.modules:  # some test here exports
        from tests.export_kit import prepare_exports_once

        prepare_exports_once()


@pytest.fixture(scope="session", autouse=True)
def _fast_commands() -> None:
    if "edge_pslora.cli.main" in sys.modules:  # some test here runs commands
        from tests.command_kit import keep_command

        keep_command()
