"""The gate's section in its quick form, and with faults that it must catch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_pslora import adapt
from edge_pslora.core import drift
from edge_pslora.core.gate import CONTRADICTED, FOLLOWS_ALONE, NEW_INPUTS, NOTHING_LEARNED
from edge_pslora.models import auto, builtin
from edge_pslora.pipeline import judging
from edge_pslora.training import loop
from tests.torture import drifting, faulty_steps, poison
from tests.torture.plan import Plan, Row, format_rows
from tests.torture.poisons import HONEST, STARTS, Digits, write_session

pytest.importorskip("onnxscript")
START = "one session"


def _failed(rows: list[Row]) -> list[str]:
    return [row.what for row in rows if not row.met]


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Digits]:
    poison.prepare_exports_once()
    folder = tmp_path_factory.mktemp("poison") / "begun"
    return folder, poison.begin(folder, STARTS[START], 0)


@pytest.fixture
def attempts(begun: tuple[Path, Digits]) -> Callable[..., list[Row]]:
    def attempt(*kinds: str) -> list[Row]:
        counts: dict[str, poison.Count] = defaultdict(poison.Count)
        for kind in kinds:
            poison.attempt(*begun, kind, START, counts[kind])
        return poison.gate_rows(counts, 1)

    return attempt


@pytest.mark.slow
def test_no_worse_model_is_promoted_and_honest_sessions_are(tmp_path: Path) -> None:
    rows = poison.run(Plan(quick=True, scratch=tmp_path))
    assert len(rows) > 20
    assert not _failed(rows), format_rows(rows)


def test_a_change_of_inputs_after_many_sessions_is_no_contradiction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among few features fifty images white on black drown in five hundred that are not; by themselves
    they can be told."""
    for module in (builtin, auto):
        monkeypatch.setattr(module, "WIDE", builtin.FEATURES)
    start = "many sessions"
    digits = poison.begin(tmp_path / "begun", STARTS[start], poison.FIRST_SEED + 3)
    few = digits.next[0][:50], digits.next[1][:50]
    x, y = HONEST["white on black"](*few, digits.seed)
    data = write_session(tmp_path / "next.npz", x, y)
    result = adapt(data, workspace=tmp_path / "begun" / "w")
    assert result.promoted, result.reason
    told = result.metrics
    assert told["alone_p"] < FOLLOWS_ALONE
    assert told["novelty"] > NEW_INPUTS
    assert min(told["learned_p"], told["known_p"]) > NOTHING_LEARNED
    assert told["contradicted_p"] < CONTRADICTED


@pytest.mark.parametrize(
    ("fault", "caught"),
    [
        ("promotes everything", "labels flipped, 100 %: worse models promoted"),
        ("trusts labels", "labels flipped, 100 %: worse models promoted"),
        ("refuses everything", "all honest sessions: no worse, refused"),
    ],
)
def test_a_gate_with_a_fault_is_caught(
    attempts: Callable[..., list[Row]], monkeypatch: pytest.MonkeyPatch, fault: str, caught: str
) -> None:
    kinds = ("labels flipped, 100 %", "more of the same")
    for name in ("decide", "_evidence"):  # put back what the plant replaces
        monkeypatch.setattr(judging, name, getattr(judging, name))
    assert not _failed(attempts(*kinds))
    poison.PLANTS[fault]()
    assert caught in _failed(attempts(*kinds))


@pytest.mark.parametrize("fault", faulty_steps.PLANTS)
def test_training_with_a_fault_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    for name in ("go_back", "is_finite"):
        monkeypatch.setattr(loop, name, getattr(loop, name))
    poison.PLANTS[fault]()
    assert _failed(faulty_steps.rows(Plan(quick=True, scratch=tmp_path)))


@pytest.mark.parametrize("fault", drifting.PLANTS)
def test_a_detector_with_a_fault_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    real = drift.DriftDetector.__init__
    monkeypatch.setattr(real, "__defaults__", real.__defaults__)
    monkeypatch.setattr(drifting, "STREAMS", dict(list(drifting.STREAMS.items())[:1]))
    poison.PLANTS[fault]()
    assert _failed(drifting.rows(Plan(quick=True, scratch=tmp_path)))
