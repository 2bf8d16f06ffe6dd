"""The project's real files, where they are at hand (EDGE_PSLORA_DATA or ../shared/data)."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from edge_pslora.data.read import ReadOptions, read_dataset
from edge_pslora.data.split import split
from edge_pslora.errors import DataError

ROOT = Path(
    os.environ.get("EDGE_PSLORA_DATA", Path(__file__).parents[2] / ".." / "shared" / "data")
)
pytestmark = pytest.mark.skipif(not ROOT.is_dir(), reason="no folder of real data sets")


@pytest.mark.parametrize(
    ("hospital", "rows", "gaps"),
    [("cleveland", 303, 0), ("hungarian", 294, 782), ("switzerland", 123, 273), ("va", 200, 698)],
)
def test_heart(hospital: str, rows: int, gaps: int) -> None:
    path = ROOT / "tables" / f"heart_processed.{hospital}.data"
    data = read_dataset(path, ReadOptions(missing=(-9.0,), min_classes=2))
    inputs = np.asarray(data.train.inputs)
    assert (inputs.shape, int(np.isnan(inputs).sum())) == ((rows, 13), gaps)
    assert set(data.train.targets.tolist()) <= set("01234")
    rest, held = split(data.train, 0.2, 0)
    assert set(rest.targets.tolist()) == set(held.targets.tolist())


def test_gas_needs_to_be_told_where_the_label_is() -> None:
    path = ROOT / "tables" / "gas_batch1.csv"
    with pytest.raises(DataError, match="if it is the label: --label-column 0"):
        read_dataset(path)
    train = read_dataset(path, ReadOptions(label_column="0")).train
    assert (np.asarray(train.inputs).shape, len(np.unique(train.targets))) == ((445, 129), 6)


def test_parkinsons_is_regression() -> None:
    path = ROOT / "tables" / "parkinsons_updrs.tsv"
    train = read_dataset(path, ReadOptions(label_column="total_UPDRS")).train
    assert (train.task_type, np.asarray(train.inputs).shape) == ("regression", (5875, 21))


@pytest.mark.parametrize(("task", "classes"), [("agnews", 4), ("dbpedia", 14), ("cb", 3)])
def test_text(task: str, classes: int) -> None:
    data = read_dataset(ROOT / "text" / task)
    assert len(np.unique(data.train.targets)) == classes
    assert data.rejected == ()
    assert data.test is not None
    assert data.test.modality == "text"
