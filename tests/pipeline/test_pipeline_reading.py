"""What of the first session's reading options the later ones take over."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_pslora.data.options import ReadOptions
from edge_pslora.errors import WorkspaceError
from edge_pslora.pipeline.reading import KEPT, as_before, kept_options

NAMES = st.none() | st.text("abc", min_size=1)
WINDOWED = st.builds(
    ReadOptions,
    label_column=NAMES,
    text_column=NAMES,
    feature_columns=st.lists(st.text("ab", min_size=1), max_size=2).map(tuple),
    missing=st.lists(st.floats(-9, 9), max_size=2).map(tuple),
    window_seconds=st.floats(0.5, 9),
    hop_seconds=st.none() | st.floats(0.5, 9),
    rate_hz=st.none() | st.floats(1, 99),
    time_unit=st.sampled_from((None, "s", "ms")),
)


def test_what_is_kept_are_reading_options():
    assert set(KEPT) <= {field.name for field in fields(ReadOptions)}


@given(WINDOWED)
def test_kept_through_json_they_are_the_same(options):
    kept = json.loads(json.dumps(kept_options(options)))
    assert as_before(ReadOptions(), kept) == options


@given(WINDOWED, WINDOWED)
def test_what_is_said_now_wins(first, now):
    found = as_before(now, kept_options(first))
    assert found.window_seconds == now.window_seconds
    assert (found.hop_seconds, found.rate_hz) == (now.hop_seconds, now.rate_hz)
    for name in ("label_column", "text_column", "feature_columns", "missing", "time_unit"):
        assert getattr(found, name) == (getattr(now, name) or getattr(first, name))


def test_nothing_said_is_nothing_kept():
    assert kept_options(ReadOptions()) == {}
    assert kept_options(replace(ReadOptions(), keep_duplicates=True, max_bytes=5)) == {}


def test_options_of_another_version_are_refused():
    with pytest.raises(WorkspaceError, match="reading options of this version; found colour"):
        as_before(ReadOptions(), {"colour": "red"})
