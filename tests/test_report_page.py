"""The report page: complete, escaped, self-contained, for any input."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_pslora.report import (
    MAX_POINTS,
    MAX_REJECTED,
    CheckFacts,
    FileFacts,
    LayerFacts,
    LossPoint,
    ReportContext,
    SessionFacts,
    render_report,
)

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=y>&amp;"
VOID = {"meta", "br", "img", "link", "input", "hr", "line", "polyline"}
SMALL = ReportContext(
    generation=1, promoted=True, reason="good", task="t", model="m", created="now"
)


class Page(HTMLParser):
    """Collects tags, attributes and visible text; checks that tags close in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def full(text: str) -> ReportContext:
    """A context with `text` wherever the user's data may bring text."""
    return ReportContext(
        generation=3,
        promoted=False,
        reason=text,
        task=text,
        model=text,
        created=text,
        parent=2,
        accuracy_before=0.5,
        accuracy_after=0.75,
        anchor_before=0.9,
        anchor_after=0.88,
        retention=0.978,
        samples=100,
        holdout_samples=10,
        anchor_samples=20,
        steps=12,
        wall_seconds=3.5,
        peak_rss_bytes=10**9,
        history_bytes=4096,
        history_budget_bytes=10**6,
        onnx_max_abs_error=1e-6,
        labels=[text, "b"],
        checks=[CheckFacts(text, True, text), CheckFacts("anchor", False, text)],
        sessions=[
            SessionFacts(1, text, {text: 0.9}),
            SessionFacts(2, "two", {text: 0.88, "two": 0.7}),
        ],
        layers=[LayerFacts(text, 8, 0.02, 0.3, 1e-4, 0.9, 0.95, 0.6), LayerFacts("fresh", 8, 0.01)],
        losses=[LossPoint(i, 1.0 / (1 + i), 0.01 * i) for i in range(20)],
        stages=[(text, 1.5), ("train", 70.0)],
        files=[FileFacts(text, 1234, "ab" * 32)],
        rejected=[(text, text)],
        settings={text: text, "lora.rank": 8},
        notes=[text],
    )


def test_the_page_shows_every_part() -> None:
    text = Page(render_report(full("flowers"))).text
    for part in (
        *("Refused", "flowers", "75.0 %", "50.0 %", "97.8 %", "4.10 kB", "1e-06", "Checks"),
        *("Task loss", "Stability penalty", "88.0 %", "−2.0", "Layers", "30.0 %", "Rows set aside"),
        "Notes",
        *("ab" * 32, "lora.rank", "generation 2", "1m10s"),
    ):
        assert part in text, part


def test_nothing_is_loaded_and_nothing_runs() -> None:
    page = render_report(full(HOSTILE))
    parsed = Page(page)
    assert not {"script", "img", "link", "iframe", "object", "base"} & set(parsed.tags)
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    assert not [name for name, _ in parsed.attributes if name in ("src", "href", "srcset")]
    assert re.search(r"url\(|@import|https?:", page) is None
    assert "default-src 'none'" in page


def test_hostile_text_is_shown_as_text() -> None:
    page = render_report(full(HOSTILE))
    assert "<script" not in page
    # reason, heading, facts, labels, checks, matrix, layers, stages, files, rejected, settings
    assert Page(page).text.count(HOSTILE) >= 14


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=40))
def test_any_text_leaves_the_page_whole(text: str) -> None:
    plain = Page(render_report(full("x")))
    assert Page(render_report(full(text + "!"))).tags == plain.tags


def test_an_almost_empty_session_still_has_a_page() -> None:
    parsed = Page(render_report(SMALL))
    assert "Promoted" in parsed.text
    assert "table" not in parsed.tags
    assert "svg" not in parsed.tags


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0, 1e6), st.floats(0, 1e6)),
        min_size=2,
        max_size=3 * MAX_POINTS,
    )
)
def test_curves_stay_inside_their_frame(losses: list[tuple[float, float]]) -> None:
    points = [LossPoint(i, task, penalty) for i, (task, penalty) in enumerate(losses)]
    page = render_report(replace(SMALL, losses=points))
    lines = re.findall(r'<polyline points="([^"]*)"', page)
    assert len(lines) == 1 + any(penalty > 0 for _, penalty in losses)
    for line in lines:
        pairs = [tuple(map(float, pair.split(","))) for pair in line.split()]
        assert 2 <= len(pairs) <= MAX_POINTS + 1
        assert (pairs[0][0], pairs[-1][0]) == (0.0, 1000.0)
        assert all(0 <= x <= 1000 and 0 <= y <= 100 for x, y in pairs)


def test_many_rejected_rows_are_counted_and_cut() -> None:
    rows = [(f"d.csv:{i}", "not a number") for i in range(500)]
    text = Page(render_report(replace(SMALL, rejected=rows))).text
    assert "Rows set aside: 500" in text
    assert text.count("not a number") == MAX_REJECTED


def test_scores_other_than_accuracy_are_no_percentages() -> None:
    text = Page(render_report(replace(SMALL, metric="R2", accuracy_after=-0.125))).text
    assert "-0.125" in text


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_accuracies_do_not_divide_by_zero(value: float) -> None:
    sessions = [SessionFacts(1, "a", {"a": value})]
    assert "first" in Page(render_report(replace(SMALL, sessions=sessions))).text


def test_a_figure_that_no_layer_has_takes_no_column() -> None:
    layers = [LayerFacts("fc", 8, 0.01), LayerFacts("out", 8, 0.02)]
    assert "agreement" not in Page(render_report(replace(SMALL, layers=layers))).text
    assert "agreement" in Page(render_report(full("x"))).text


def test_a_page_does_not_grow_with_the_square_of_its_sessions():
    def page(count: int) -> str:
        names = [f"t{i}" for i in range(count)]
        sessions = [
            SessionFacts(i + 1, name, dict.fromkeys(names[: i + 1], 0.5))
            for i, name in enumerate(names)
        ]
        return render_report(replace(SMALL, sessions=sessions))

    assert len(page(400)) < 1.1 * len(page(60))
    text = Page(page(400)).text
    assert "360 more tasks are not shown" in text
    assert "since that row" in text
    assert all(name in text for name in ("t0", "t9", "t370", "t399"))
    assert "t369" not in text
    assert "not shown" not in Page(page(10)).text
