"""Budgets of memory and of the disk are kept; the plan of a run is the plan of its resumption."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import ArrayInputs, blobs, tiny_model
from torch import nn

from edge_pslora.config import AdaptConfig, BudgetConfig, EngineConfig
from edge_pslora.errors import UsageError
from edge_pslora.pipeline import planning
from edge_pslora.pipeline.planning import PLAN_FILE, keep_plan, kept_plan, precisions
from edge_pslora.pipeline.wear import PAUSE, CheckpointWear
from edge_pslora.training.plan import TrainingPlan
from edge_pslora.workspace.staging import begin
from tests.pipeline import budgets_child
from tests.pipeline import pipeline_kit as kit

pytestmark = pytest.mark.usefixtures("kept_graphs")  # it is not about tracing

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux' /proc")
def test_ten_budgets_of_memory_from_the_least_are_kept(tmp_path):
    budgets_child.begin(tmp_path)
    child = [sys.executable, str(HERE / "budgets_child.py"), str(tmp_path)]
    done = subprocess.run(child, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["least"] > 0
    assert len(found["runs"]) == 10
    for run in found["runs"]:
        assert run["peak"] <= run["budget"], run
        assert run["peak_bytes"] <= run["budget"], run
    # a smaller budget is met by a smaller plan, not by luck
    assert found["runs"][0]["peak_bytes"] < found["runs"][-1]["peak_bytes"]


def test_the_least_of_the_disk_that_is_named_does(run, tmp_path):
    new = ("adapt", kit.digits_npz(tmp_path / "d.npz", (7, 8, 9)), "--model", "auto", "--epochs", 1)
    done = run(*new, "--workspace", tmp_path / "w", "--disk-budget", "1MB")
    assert (done.code, done.facts["error"]) == (6, "BudgetError")
    assert not (tmp_path / "w").exists()
    least = int(done.facts["remedy"].split("at least ")[1].split(" ")[0])
    done = run(*new, "--workspace", tmp_path / "w", "--disk-budget", f"{least}B")
    assert done.code == 0, done
    used = sum(path.stat().st_size for path in (tmp_path / "w").rglob("*") if path.is_file())
    assert used <= least


def test_a_plan_is_kept_or_made_anew(tmp_path):
    staged = begin(tmp_path, 1, "digest", None)
    plan = TrainingPlan(4, 8, "bf16", checkpointing=True, cut=True, prefix="exact", peak_bytes=9)
    keep_plan(staged, plan)
    assert kept_plan(staged.scratch) == plan
    assert kept_plan(None) is None
    path = staged.scratch / PLAN_FILE
    good = plan.to_dict()
    for bad in (
        good | {"micro_batch": 0},
        good | {"precision": "float16"},
        good | {"prefix": "zip"},
        good | {"cut": 1},
        {name: value for name, value in good.items() if name != "cut"},
        good | {"more": 1},
    ):
        path.write_text(json.dumps(bad))
        assert kept_plan(staged.scratch) is None
    path.write_text("{")
    assert kept_plan(staged.scratch) is None
    path.unlink()
    assert kept_plan(staged.scratch) is None


def test_bf16_is_for_large_matrices_and_a_processor_that_has_it(monkeypatch):
    """By sizes, so that the same model is planned alike at every hour."""
    small = tiny_model()
    wide = nn.Sequential(nn.Linear(1024, 1024, bias=False))
    table = nn.Sequential(nn.Embedding(100_000, 128))
    thin = nn.Sequential(nn.Linear(100_000, 100, bias=False))

    def of(module: nn.Module) -> tuple[str, ...]:
        backbone = type(small.backbone)(module)
        return precisions(replace(small, backbone=backbone), AdaptConfig())

    monkeypatch.setattr(planning, "has_bf16", lambda device: True)
    assert of(wide) == ("bf16", "float32")
    for module in (table, thin, small.backbone.model):
        assert of(module) == ("float32",)
    monkeypatch.setattr(planning, "has_bf16", lambda device: False)
    assert of(wide) == ("float32",)
    asked = replace(AdaptConfig(), engine=EngineConfig(precision="bf16"))
    assert precisions(small, asked) == ("bf16",)


def test_checkpoints_become_rare_once_they_wrote_as_much_as_is_published(tmp_path):
    path, now = tmp_path / "c", [0.0]
    wear = CheckpointWear(path, 250, clock=lambda: now[0])
    assert wear.due()  # nothing is there yet
    path.write_bytes(bytes(100))
    assert wear.due()
    assert wear.due()
    assert not wear.due()
    now[0] = PAUSE
    assert wear.due()
    assert wear.spent == 300


def test_a_budget_of_main_memory_is_no_budget_of_a_device(monkeypatch):
    monkeypatch.setattr(planning, "find_device", torch.device)
    budget = BudgetConfig(ram_bytes=10**9)
    there = AdaptConfig(engine=EngineConfig(device="cuda:1"))
    assert planning.usable_device(there) == torch.device("cuda:1")
    assert planning.usable_device(AdaptConfig(budget=budget)) == torch.device("cpu")
    with pytest.raises(UsageError, match=r"--ram-budget.*found --device cuda:1"):
        planning.usable_device(replace(there, budget=budget))


def test_what_is_planned_for_a_device_is_whole_batches_in_float32(monkeypatch):
    monkeypatch.setattr(planning, "_is_large", lambda model: True)
    model, inputs = tiny_model(), ArrayInputs(blobs(("a", "b"))[0])
    plan = planning.unplanned(model, inputs, AdaptConfig(), torch.device("cuda:0"))
    assert plan == TrainingPlan(32, 32, "float32", device="cuda:0")
    assert "on cuda:0" in planning.described_plan(plan, AdaptConfig())
