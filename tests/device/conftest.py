"""One publisher and one updated device for all tests; each test works on copies."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edge_pslora.device import gate_child, local_gate
from edge_pslora.errors import EdgePsloraError
from tests.device.device_kit import Device, Publisher, head, make_publisher


@dataclass(frozen=True)
class World:
    """bundles 1 and 2 are as good; 3 answers the wrong labels. device: has taken the first."""

    publisher: Publisher
    one: Path
    two: Path
    worse: Path
    device: Device


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("updates")
    publisher = make_publisher(folder / "publisher")
    for swapped in (False, False, True):
        publisher.add(head(swapped=swapped))
    one, two, worse = (publisher.bundle(f"bundle-{n}", n) for n in (1, 2, 3))
    device = Device(folder / "device", publisher.root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local_gate, "_run", judged_here)
        device.apply(one)
    return World(publisher, one, two, worse, device)


@pytest.fixture
def device(made: World, tmp_path: Path) -> Device:
    return made.device.copy(tmp_path / "device")


@pytest.fixture
def fresh(made: World, tmp_path: Path) -> Device:
    """A device without a workspace."""
    return Device(tmp_path / "fresh", made.publisher.root)


def judged_here(staged: Path, task: Mapping[str, Any]) -> dict[str, Any]:
    """What the child does, without a process and without limits."""
    try:
        return gate_child._judge(gate_child.Task(**task))
    except (EdgePsloraError, ValueError) as problem:
        return {"problem": str(problem)}


@pytest.fixture
def gate_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fast; test_local_gate.py has the real one."""
    monkeypatch.setattr(local_gate, "_run", judged_here)


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """In memory where that is possible: hundreds of updates wait for thousands of fsyncs."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as place:
        yield Path(place)
