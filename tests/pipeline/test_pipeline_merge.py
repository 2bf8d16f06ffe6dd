"""`edge-pslora merge` folds a workspace's own adapters into the weights that the workspace serves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge_pslora.config import AdaptConfig, MergeRule
from edge_pslora.merge_files import merge
from edge_pslora.pipeline import adapt
from edge_pslora.workspace.tensors import read_tensors
from tests.pipeline import pipeline_kit as kit

pytestmark = pytest.mark.usefixtures("kept_graphs")  # it is not about tracing

HEAD = {"pslora_head.weight", "pslora_head.bias"}  # of a generation, not of the base


def adapters_make_the_served_weights(workspace: Path, rule: MergeRule) -> None:
    generations = sorted((workspace / "generations").iterdir())
    folders = [generation / "adapter" for generation in generations]
    for count, generation in enumerate(generations, start=1):
        out = workspace.parent / f"{count}.safetensors"
        report = merge(folders[:count], workspace / "base", out, rule)
        served, merged = read_tensors(generation / "model.safetensors"), read_tensors(out)
        assert served.keys() - merged.keys() == HEAD
        assert report.merged
        for name, value in merged.items():
            np.testing.assert_allclose(value, served[name], rtol=1e-6, atol=1e-6, err_msg=name)


def test_adapters_of_two_sessions_make_the_served_weights(workspace):
    adapters_make_the_served_weights(workspace, AdaptConfig().merge)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["max_magnitude", "cumulative", "average"])
def test_adapters_of_three_sessions_make_them_under_any_rule(tmp_path, rule):
    for number, labels in enumerate(((0, 1, 2), (3, 4), (5, 6)), start=1):
        data = kit.digits_npz(tmp_path / f"{number}.npz", labels, 90)
        config = AdaptConfig(merge=rule)
        result = adapt(data, model="auto", workspace=tmp_path / "w", config=config)
        assert result.promoted, result.reason
    adapters_make_the_served_weights(tmp_path / "w", rule)
