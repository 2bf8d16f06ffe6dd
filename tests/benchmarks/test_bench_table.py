"""The table of a benchmark: figures, targets and the file that DESIGN.md lays down."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.table import Row, format_table, row, write_table

VALUES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=6)


@given(VALUES, st.floats(-1e6, 1e6))
def test_the_measured_value_lies_in_its_range_and_exactly_one_side_of_the_target(
    values: list[float], target: float
) -> None:
    higher = row("f", values, "fraction", "higher", target)
    lower = row("f", values, "fraction", "lower", target)
    assert higher.low <= higher.measured <= higher.high
    assert higher.met or lower.met
    assert (higher.met and lower.met) == (higher.measured == target)


def test_without_a_target_nothing_is_met_or_missed() -> None:
    assert row("f", [1.0], "s", "lower").met is None


@pytest.mark.parametrize("values", [[], [math.nan], [1.0, math.inf]])
def test_a_figure_that_was_not_measured_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        row("f", values, "s", "lower")


def test_the_printed_table_shows_every_figure_and_a_missed_target() -> None:
    rows = [
        row("accuracy", [0.70, 0.74], "fraction", "higher", 0.80),
        row("seconds", [12.0], "s", "lower", 20.0),
        row("note", [1.0], "fraction", "higher"),
    ]
    lines = format_table(rows).splitlines()
    assert len(lines) == 2 + len(rows)
    assert "0.700 to 0.740" in lines[2]
    assert lines[2].endswith("NO")
    assert lines[3].endswith("yes")
    assert " to " not in lines[3]


def test_the_file_holds_what_the_contract_names(tmp_path: Path) -> None:
    rows = [row("accuracy", [0.9], "fraction", "higher", 0.8)]
    path = write_table("quick", rows, tmp_path / "out", {"command": "python -m benchmarks.quick"})
    assert path == tmp_path / "out" / "quick.json"
    content = json.loads(path.read_text())
    assert {"machine", "date", "commit", "rows", "command"} == set(content)
    assert set(content["rows"][0]) == {field.name for field in fields(Row)}
    assert content["machine"]["cores"] >= 1
    assert content["machine"]["memory_bytes"] > 1 << 20
    assert {"cpu", "python", "torch"} <= set(content["machine"])
    assert Row(**content["rows"][0]) == rows[0]
