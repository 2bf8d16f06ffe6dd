"""`--prefix-cache` and `--adapt-depth` through a whole run: files, resumption, space."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import ArrayInputs, TinyBackbone, blobs, tiny_model
from torch import nn

from edge_pslora.config import AdaptConfig, EngineConfig, LoraConfig, TrainConfig
from edge_pslora.errors import BudgetError, ModelError, UsageError
from edge_pslora.models.types import LoadedModel
from edge_pslora.pipeline import prefix as prefix_module
from edge_pslora.pipeline.prefix import PlannedPrefix, open_prefix, plan_prefix, room_for_rows
from edge_pslora.pipeline.prefix_file import MARK, ROWS
from edge_pslora.training.memory import Memory, first_memory
from edge_pslora.training.plan import TrainingPlan
from edge_pslora.training.prefix_cache import PrefixCache
from edge_pslora.training.targets import adapted_targets

CONFIG = AdaptConfig(
    lora=LoraConfig(rank=2, target_modules=("2", "4")),
    train=TrainConfig(epochs=2),
    engine=EngineConfig(prefix_cache="exact"),
)


PLAN = TrainingPlan(32, 32, cut=True)


def _inputs() -> ArrayInputs:
    return ArrayInputs(blobs(("a", "b"), n=40)[0])


def _memory(model: LoadedModel, config: AdaptConfig) -> Memory:
    targets = adapted_targets(model.backbone.model, config)
    return first_memory(model, targets, config, "classification")


def _planned(
    config: AdaptConfig = CONFIG, room: int | None = 1 << 30, plan: TrainingPlan = PLAN
) -> PlannedPrefix:
    model = tiny_model()
    return plan_prefix(model, _memory(model, config), _inputs(), config, plan, room)


def _opened(folder: Path, config: AdaptConfig = CONFIG, run: str = "run"):
    return tiny_model(), open_prefix(_planned(config), _inputs(), folder, run)


def _fill(found: PrefixCache | None, model: LoadedModel) -> None:
    assert found is not None
    found.fill(model.backbone, _inputs(), 32, lambda n: None)


class _KilledError(BaseException):
    pass


def _killed_run(folder: Path, samples: int | None = None) -> None:
    """A run that ends in the middle: after all rows, or after some."""
    try:
        _run_until(folder, samples)
    except _KilledError:
        return
    raise AssertionError("it was not killed")


def _run_until(folder: Path, samples: int | None) -> None:
    model, session = _opened(folder)
    with session as found:
        assert found is not None
        if samples is None:
            _fill(found, model)
        else:
            batch = np.arange(samples)
            with torch.no_grad(), found.during(model.backbone, batch):
                model.backbone(**_inputs().batch(batch))
        raise _KilledError


def test_a_finished_session_leaves_no_file(tmp_path):
    model, session = _opened(tmp_path)
    with session as found:
        _fill(found, model)
        assert {p.name for p in tmp_path.iterdir()} == {ROWS, MARK}
    assert list(tmp_path.iterdir()) == []


def test_a_killed_run_goes_on_with_all_rows(tmp_path):
    _killed_run(tmp_path)
    with _opened(tmp_path)[1] as found:
        assert found is not None
        assert found.complete


def test_rows_of_a_run_killed_half_way_are_not_trusted(tmp_path):
    _killed_run(tmp_path, samples=32)
    assert not (tmp_path / MARK).exists()
    with _opened(tmp_path)[1] as found:
        assert found is not None
        assert not found.complete


@pytest.mark.parametrize(
    "change", ["another run", "another form", "another cut", "rows lost", "mark damaged"]
)
def test_what_changes_the_rows_makes_them_anew(tmp_path, change):
    _killed_run(tmp_path)
    config, run = CONFIG, "run"
    if change == "another run":
        run = "other"
    elif change == "another form":
        config = replace(CONFIG, engine=EngineConfig(prefix_cache="bf16"))
    elif change == "another cut":
        config = replace(CONFIG, lora=LoraConfig(rank=2, target_modules=("4",)))
    elif change == "rows lost":
        with (tmp_path / ROWS).open("r+b") as file:
            file.truncate(100)  # what a power loss leaves of a file that nobody synced
    else:
        (tmp_path / MARK).write_text(json.dumps({"key": 1}))
    with _opened(tmp_path, config, run)[1] as found:
        assert found is not None
        assert not found.complete


def test_too_little_disk_is_said_and_changes_no_form(monkeypatch, tmp_path):
    automatic = replace(CONFIG, engine=EngineConfig())
    found = _planned(automatic)
    assert (found.form, found.note) == ("exact", "")
    less = _planned(automatic, room=100)
    assert less.form == "off"
    assert less.lower == found.lower
    assert "no prefix cache: it takes" in less.note
    for form in ("exact", "bf16", "int8"):
        asked = replace(CONFIG, engine=EngineConfig(prefix_cache=form))
        with pytest.raises(BudgetError, match=f"--prefix-cache {form}"):
            _planned(asked, room=100)
    free = prefix_module.LEFT_FREE + 50
    monkeypatch.setattr(prefix_module, "free_bytes", lambda folder: free)
    assert room_for_rows(tmp_path, None) == 50
    assert room_for_rows(tmp_path / "not" / "yet", 20) == 20
    assert room_for_rows(tmp_path, -1) == 0


def test_a_resumed_run_keeps_the_form_whatever_is_free():
    automatic = replace(CONFIG, engine=EngineConfig())
    for form in ("off", "exact", "bf16"):
        planned = _planned(automatic, room=None, plan=replace(PLAN, prefix=form))
        assert planned.form == form


def test_no_cache_where_it_cannot_help(tmp_path):
    everything = replace(CONFIG, lora=LoraConfig(target_modules=("*",)))
    found = _planned(everything)
    assert found.cut is None
    assert "no prefix cache" in found.note
    for config in (
        replace(CONFIG, engine=EngineConfig(prefix_cache="off")),
        replace(everything, engine=EngineConfig()),
    ):
        found = _planned(config)
        assert found == PlannedPrefix()
        with open_prefix(found, _inputs(), tmp_path, "run") as rows:
            assert rows is None
    assert list(tmp_path.iterdir()) == []
    assert "memory" in _planned(plan=replace(PLAN, cut=False)).note


def test_activations_that_are_computed_twice_are_not_skipped_half():
    """The recomputation of a block would run what its first pass left out."""
    model = tiny_model()
    module = nn.Sequential(
        *(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)) for _ in range(2))
    )
    backbone = TinyBackbone(module).eval().requires_grad_(False)
    model = replace(model, backbone=backbone, feature_size=6)
    inside = replace(CONFIG, lora=LoraConfig(rank=2, target_modules=("0.2", "1.*")))
    memory = _memory(model, inside)
    for checkpointing in (False, True):
        plan = replace(PLAN, checkpointing=checkpointing)
        found = plan_prefix(model, memory, _inputs(), inside, plan, 1 << 30)
        assert (found.cut is None) == checkpointing
    assert "computed twice" in found.note


def test_settings_are_checked():
    with pytest.raises(UsageError, match="--prefix-cache"):
        EngineConfig(prefix_cache="float16")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="--adapt-depth"):
        EngineConfig(adapt_depth=0)
    low = AdaptConfig(lora=LoraConfig(target_modules=("0",)), engine=EngineConfig(adapt_depth=0.3))
    with pytest.raises(ModelError, match="--adapt-depth"):
        adapted_targets(tiny_model().backbone.model, low)
