"""Presets, merge rules, heads and other settings, from the command line to the published files."""

from __future__ import annotations

import numpy as np
import pytest

from edge_pslora import Workspace, evaluate
from edge_pslora.workspace.tensors import read_tensors
from tests.pipeline import pipeline_kit as kit

pytestmark = pytest.mark.usefixtures("kept_graphs")  # it is not about tracing

LABELS = ((0, 1, 2), (3, 4), (5, 6))
FAST = ("--epochs", 2, "--learning-rate", "2e-3")


@pytest.fixture
def sessions(run, tmp_path):
    """sessions(2, *flags): that many sessions in tmp_path/w; all must be promoted."""

    def learn(count: int, *flags: object) -> list[kit.Outcome]:
        done = []
        for number, labels in enumerate(LABELS[:count]):
            data = kit.digits_npz(tmp_path / f"{number}.npz", labels, 120)
            model = ("--model", "auto") if number == 0 else ()
            done.append(run("adapt", data, *model, "--workspace", tmp_path / "w", *FAST, *flags))
            assert done[-1].code == 0, done[-1]
        return done

    return learn


def _parts(workspace, number):
    """Base and merged weights, and the history's bytes, of a generation."""
    base = read_tensors(workspace / "base" / "model.safetensors")
    folder = workspace / "generations" / f"{number:06d}"
    return base, read_tensors(folder / "model.safetensors"), folder


@pytest.mark.parametrize("preset", ["paper", "sequential"])
def test_presets(sessions, tmp_path, preset):
    count = 2 if preset == "paper" else 1
    done = sessions(count, "--preset", preset, "--force")
    config = Workspace.open(tmp_path / "w").generation(count).manifest.config
    assert config["head"]["kind"] == "linear"
    assert config["merge"] == {"paper": "max_magnitude", "sequential": "none"}[preset]
    assert (config["stability"]["weight"] > 0) == (preset == "paper")
    head = read_tensors(tmp_path / "w" / "generations" / f"{count:06d}" / "head.safetensors")
    assert set(head) == {"weight", "bias"}
    assert len({outcome.facts["history_bytes"] for outcome in done}) == 1


def test_cumulative_over_three_sessions(sessions, tmp_path):
    """It trains on from R_t, the sum of all updates, which is kept beside the deployed model."""
    sessions(3, "--merge", "cumulative", "--force")
    total = {}
    for number in (1, 2, 3):
        base, merged, folder = _parts(tmp_path / "w", number)
        adapter = read_tensors(folder / "adapter" / "adapter_model.safetensors")
        running = read_tensors(folder / "running.safetensors")
        for name, value in running.items():
            key = f"base_model.model.{name}"
            delta = 2 * adapter[f"{key}.lora_B.weight"] @ adapter[f"{key}.lora_A.weight"]
            total[name] = total.get(name, 0) + delta
            np.testing.assert_allclose(value, total[name], rtol=1e-4, atol=1e-6)
            # elementwise, what is deployed is one of the running sums so far
            deployed = merged[f"{name}.weight"] - base[f"{name}.weight"]
            if number == 1:
                np.testing.assert_allclose(deployed, value, rtol=1e-4, atol=1e-6)
    test = kit.digits_npz(tmp_path / "test.npz", range(7), part="test")
    found = evaluate(tmp_path / "w", test, compare_torch=True)
    assert found.agreement == 1.0
    assert found.accuracy > 0.6


@pytest.mark.parametrize("rule", ["max_magnitude", "constructive", "average", "none"])
def test_merge_rules(workspace, run, tmp_path, rule):
    """The third generation's weights against the rule, recomputed from the published files."""
    data = kit.digits_npz(tmp_path / "d.npz", (7, 8), 120)
    done = run("adapt", data, "--workspace", workspace, *FAST, "--merge", rule, "--force")
    assert done.code == 0, done
    base, before, _ = _parts(workspace, 2)
    _, after, folder = _parts(workspace, 3)
    adapter = read_tensors(folder / "adapter" / "adapter_model.safetensors")
    assert adapter
    for key in adapter:
        if not key.endswith("lora_A.weight"):
            continue
        name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight") + ".weight"
        delta = 2 * adapter[key.replace("lora_A", "lora_B")] @ adapter[key]  # alpha / rank = 2
        old, new = before[name] - base[name], after[name] - base[name]
        both = old + delta
        expected = {
            "none": both,
            "average": old + (delta - old) / 3,
            "max_magnitude": np.where(np.abs(delta) > np.abs(old), delta, old),
            "constructive": np.where(np.abs(both) >= np.abs(old), both, old),
        }[rule]
        close = np.isclose(new, expected, rtol=1e-3, atol=1e-5)
        assert close.mean() > 0.999  # rounding decides where both sizes are equal


def test_a_linear_head_and_trained_norms(sessions, tmp_path):
    sessions(2, "--head", "linear", "--train-norms", "--force", "--epochs", 6)
    base, merged, folder = _parts(tmp_path / "w", 2)
    norms = [n for n in base if "norm" in n.lower()]
    assert all(np.array_equal(base[n], merged[n]) for n in norms if "running" in n)
    changed = {name for name in base if not np.array_equal(base[name], merged[name])}
    assert changed
    head = read_tensors(folder / "head.safetensors")
    np.testing.assert_array_equal(merged["pslora_head.weight"], head["weight"])
    np.testing.assert_array_equal(merged["pslora_head.bias"], head["bias"])
    assert head["weight"].shape[0] == 5


@pytest.mark.parametrize(
    "flags",
    [("--head", "linear"), ("--merge", "cumulative"), ("--target", "nothing*")],
    ids=lambda flags: flags[0],
)
def test_what_cannot_change_between_sessions(workspace, run, tmp_path, flags):
    before = kit.snapshot(workspace)
    data = kit.digits_npz(tmp_path / "d.npz", (7, 8))
    done = run("adapt", data, "--workspace", workspace, *flags)
    assert done.code in (2, 4)
    assert flags[0] in done.facts["where"]
    assert kit.snapshot(workspace) == before


def test_rank_and_history_budget_may_change(workspace, run, tmp_path):
    """The parent's history is folded into whatever the new budget allows."""
    data = kit.digits_npz(tmp_path / "d.npz", (7, 8))
    done = run("adapt", data, "--workspace", workspace, "--rank", 4, "--history-budget", "100kB")
    assert done.code == 0, done
    assert done.facts["history_bytes"] <= 100_000
