"""The heads through the command line: files, exported graph, later sessions, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_pslora.exporters.run import open_onnx
from edge_pslora.workspace.tensors import open_tensors
from tests.pipeline.hf_kit import bert_folder
from tests.pipeline.pipeline_kit import digits_npz, write_jsonl

pytestmark = pytest.mark.usefixtures("kept_graphs")  # it is not about tracing

TEXT = ("--learning-rate", "0.01", "--epochs", "3", "--batch-size", "16", "--max-length", "24")


def _arrays(workspace: Path, number: int) -> dict[str, np.ndarray]:
    with open_tensors(workspace / f"generations/{number:06d}/head.safetensors") as file:
        return {name: file.read(name) for name in file.names}


def test_a_label_text_head_learns_exports_and_goes_on(tmp_path: Path, run: Any) -> None:
    model = bert_folder(tmp_path / "model", layers=1)
    workspace = tmp_path / "w"
    first = write_jsonl(tmp_path / "one.jsonl", ["sport", "food"])
    words = ("--label-template", "the {}")
    made = run(
        "adapt", first, "--model", model, "--workspace", workspace, "--head", "label-text",
        *words, *TEXT,
    )  # fmt: skip
    assert made.code == 0, made.err
    assert made.facts["head"] == "label-text"
    assert 0 <= made.facts["zero_shot_accuracy"] <= 1
    assert set(_arrays(workspace, 1)) == {"weight", "bias"}
    more = write_jsonl(tmp_path / "two.jsonl", ["travel", "money"], seed=1)
    made = run("adapt", more, "--workspace", workspace, "--force", *TEXT)
    assert made.code == 0, made.err
    assert made.facts["labels"] == ["food", "sport", "money", "travel"]
    # all rows were made anew, and have one length: the scale of the cosines
    before, after = _arrays(workspace, 1)["weight"], _arrays(workspace, 2)["weight"]
    assert not np.allclose(before, after[:2])
    norms = np.linalg.norm(after, axis=1)
    assert np.allclose(norms, norms[0], rtol=1e-4)
    compared = run("eval", workspace, more, "--compare-torch")
    assert compared.code == 0, compared.err
    assert compared.facts["agreement"] == 1.0
    # logits are cosines times that length, whatever the text
    runner = open_onnx(workspace / "generations/000002/model.onnx")
    ids = np.array([[2, 5, 6, 3], [2, 9, 9, 3]], dtype=np.int64)
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    logits = runner.run({n: v for n, v in inputs.items() if n in runner.input_types})
    assert np.abs(logits).max() <= norms[0] * (1 + 1e-4)
    newer = write_jsonl(tmp_path / "three.jsonl", ["travel", "money"], seed=2)
    other = run("adapt", newer, "--workspace", workspace, "--head", "linear", *TEXT)
    assert other.code == 2
    assert "label-text" in other.err or "label-text" in str(other.facts)


def test_label_text_is_refused_for_other_data_and_leaves_no_workspace(
    tmp_path: Path, run: Any
) -> None:
    data = digits_npz(tmp_path / "d.npz", [0, 1], 60)
    workspace = tmp_path / "w"
    refused = run(
        "adapt", data, "--model", "auto", "--workspace", workspace, "--head", "label-text"
    )
    assert refused.code == 2
    assert not (workspace / "workspace.json").exists()


@pytest.mark.parametrize("head", ["analytic", "linear"])
def test_the_head_file_grows_by_its_labels_only(tmp_path: Path, run: Any, head: str) -> None:
    workspace = tmp_path / "w"
    for number, labels in enumerate(([0, 1, 2], [0, 1, 2], [1, 2])):
        data = digits_npz(tmp_path / f"{number}.npz", labels, 90 + 30 * number)
        model = ("--model", "auto", "--head", head) if number == 0 else ()
        made = run(
            "adapt", data, *model, "--workspace", workspace, "--epochs", "1", "--force"
        )  # fmt: skip
        assert made.code == 0, made.err
    sizes = [
        {name: array.nbytes for name, array in _arrays(workspace, number).items()}
        for number in (1, 2, 3)
    ]
    assert sizes[0] == sizes[1] == sizes[2]
    arrays = _arrays(workspace, 3)
    if head == "linear":
        assert arrays["row_updates"].tolist() == [2, 2, 2]
        assert bool(arrays["row_history"].any())
    else:
        assert "gram" in arrays


def test_a_head_budget_is_kept_or_refused(tmp_path: Path, run: Any) -> None:
    data = digits_npz(tmp_path / "d.npz", [0, 1, 2], 150)
    common = ("--model", "auto", "--head", "analytic", "--epochs", "1")
    refused = run("adapt", data, *common, "--workspace", tmp_path / "no", "--head-budget", "1100B")
    assert refused.code == 6
    assert not (tmp_path / "no" / "workspace.json").exists()
    kept = run("adapt", data, *common, "--workspace", tmp_path / "w", "--head-budget", "6KB")
    assert kept.code == 0, kept.err
    arrays = _arrays(tmp_path / "w", 1)
    assert sum(a.nbytes for n, a in arrays.items() if n.startswith("gram")) <= 6000
    assert "gram_vectors" in arrays
    more = digits_npz(tmp_path / "more.npz", [0, 1, 2], 150, part="test")
    again = run(
        "adapt", more, "--workspace", tmp_path / "w", "--head-budget", "6KB", "--epochs", "1"
    )
    assert again.code == 0, again.err
    assert _arrays(tmp_path / "w", 2)["gram_vectors"].shape == arrays["gram_vectors"].shape
