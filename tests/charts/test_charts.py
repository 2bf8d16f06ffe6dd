"""Drawings: only what is known gets into a page, in the page's own colours."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from edge_pslora.charts import palette
from edge_pslora.charts.canvas import canvas, label
from edge_pslora.charts.dots import Dot, Dots, dot_chart
from edge_pslora.charts.heat import HeatMap, heat_map
from edge_pslora.charts.lines import Line, Lines, line_chart
from edge_pslora.charts.plane import Plane, plane_chart
from edge_pslora.charts.svg import inline
from edge_pslora.charts.types import percent, points, signed, size

HEAD = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9">'
NAMES = ("$x_1$ & <b>", "漢字 \x1b[0m", "plain")


def lines_of(names: tuple[str, ...] = NAMES) -> Lines:
    values = tuple(Line(name, (None, 0.5, 0.25 * i)) for i, name in enumerate(names))
    mean = Line("mean", (0.5, 0.4, 0.3))
    return Lines(
        "k", "T <i>", "seen & said", "session", "accuracy", ("1", "2", "3"), values, percent, mean
    )


def test_a_drawing_says_what_it_is_and_carries_text_as_text():
    chart = line_chart(lines_of())
    root = ElementTree.fromstring(chart.svg)
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-labelledby"] == "k-title k-text"
    assert root.find("title").text == "T <i>"
    assert root.find("desc").text == "seen & said"
    assert {"session", "accuracy", "1", "2", "3"} <= {t.text for t in root.iter("text")}
    assert [n.attrib["id"] for n in root.iter() if "id" in n.attrib] == ["k-title", "k-text"]
    assert re.search(r"url\(|href|<style|<metadata|#[0-9a-f]{6}", chart.svg) is None
    assert {"var(--c1)", "var(--ink)"} <= set(re.findall(r"var\(--\w+\)", chart.svg))


def test_tables_have_the_figures_and_the_gaps():
    table = line_chart(lines_of()).table
    assert table.header == ("session", *NAMES, "mean")
    assert [cell.value for cell in table.rows[2]] == [None, 0.0, 0.25, 0.5, 0.3]
    assert [cell.text for cell in table.rows[0]] == ["1", "–", "–", "–", "50.0 %"]


def test_many_lines_are_told_apart_by_age():
    few, many = line_chart(lines_of()), line_chart(lines_of(tuple(f"task {i}" for i in range(9))))
    assert [entry.name for entry in few.legend] == [*NAMES, "mean"]
    assert [entry.name for entry in many.legend] == ["oldest: task 0", "newest: task 8", "mean"]


def heat_of(values: tuple[tuple[float | None, ...], ...], **more: object) -> HeatMap:
    rows = tuple(f"row {i}" for i in range(len(values)))
    columns = tuple(str(i) for i in range(len(values[0])))
    return HeatMap("h", "t", "s", "row", rows, columns, values, points, **more)


def test_a_heat_map_of_a_thousand_cells_is_small_and_has_a_path_a_colour():
    values = tuple(tuple((i * j % 97) / 97 for j in range(30)) for i in range(36))
    chart = heat_map(heat_of(values))
    boxes = [
        p
        for p in ElementTree.fromstring(chart.svg).iter("path")
        if "color-mix" in p.get("style", "")
    ]
    assert 15 <= len(boxes) <= 21
    assert sum(p.get("d").count("M") for p in boxes) == 36 * 30
    assert len(chart.svg) < 80_000


def test_small_changes_look_small_and_the_legend_says_how_much():
    chart = heat_map(heat_of(((0.0, -0.01),), kind="change", least=0.1))
    assert "var(--lost) 10%" in chart.svg
    assert [entry.name for entry in chart.legend] == ["−10.0 lost"]
    assert heat_map(heat_of(((None, None),))).svg == ""


def test_points_are_numbered_and_no_number_lies_on_another():
    dots = [Dot(f"m{i}", 0.8 + 0.001 * (i % 6), None, None, "other") for i in range(30)]
    lows = [Dot(f"m{i}", -0.1 + 0.001 * (i // 6), -0.11, -0.09, "other") for i in range(30)]
    data = Plane("p", "t", "s", "x", "y", tuple(zip(dots, lows, strict=True)), percent, points)
    chart = plane_chart(data)
    texts = list(ElementTree.fromstring(chart.svg).iter("text"))
    numbers = {t.text: (float(t.get("x")), float(t.get("y"))) for t in texts if t.text.isdigit()}
    assert sorted(map(int, numbers)) == list(range(1, 31))
    spots = list(numbers.values())
    apart = [
        abs(a - c) > 5 or abs(b - d) > 7 for i, (a, b) in enumerate(spots) for c, d in spots[:i]
    ]
    assert all(apart)
    assert [entry.mark for entry in chart.legend] == [str(i) for i in range(1, 31)]


def test_dots_show_groups_by_shape_and_the_interval_in_the_table():
    dots = (Dot("a", 0.5, 0.4, 0.6, "our default"), Dot("b", 0.4, None, None, "joint"))
    chart = dot_chart(Dots("d", "t", "s", "x", dots, percent, rule=0.5))
    assert [(e.name, e.shape) for e in chart.legend] == [
        ("our default", "star"),
        ("joint", "diamond"),
    ]
    assert [c.text for c in chart.table.rows[0]] == ["a", "50.0 %", "40.0 %", "60.0 %"]
    assert [c.text for c in chart.table.rows[1]] == ["b", "40.0 %", "–", "–"]


def test_every_colour_of_a_drawing_has_to_follow_the_page():
    with canvas(100) as drawn:
        drawn.axes.plot([0, 1], [0, 1], color="#ff0000")
        with pytest.raises(ValueError, match="stand-ins"):
            drawn.svg("k", "t", "s")
    assert palette.css(palette.heat(2)) == "color-mix(in oklab, var(--heat) 100%, var(--card))"
    assert palette.css(palette.change(-0.5)) == "color-mix(in oklab, var(--lost) 50%, var(--card))"
    with pytest.raises(ValueError, match="stand-ins"):
        palette.css("#019900")


@pytest.mark.parametrize(
    "inside",
    [
        "<script>alert(1)</script>",
        "<image/>",
        "<foreignObject/>",
        '<path d="M 0 0" style="filter: url(#x)"/>',
        '<path d="M 0 0" style="fill: red"/>',
        '<path d="M 0 0" style="opacity: #010001"/>',
    ],
)
def test_what_is_not_known_does_not_get_into_a_page(inside: str):
    with pytest.raises(ValueError, match="expected"):
        inline(f"{HEAD}{inside}</svg>", "k", "t", "s")


def test_text_is_escaped_whatever_drew_it():
    found = inline(f"{HEAD}<text>&lt;script&gt;</text></svg>", "k", 'a"<', "<b>")
    assert "<text>&lt;script&gt;</text>" in found
    assert "<b>" not in found
    # the font of matplotlib 3.9, all in one property
    old = "<text style=\"font: 700 10.5px 'DejaVu Sans', sans-serif; fill: #010001\">x</text>"
    assert "font-size:10.5px; font-weight:700" in inline(f"{HEAD}{old}</svg>", "k", "t", "s")


def test_labels_are_short_and_on_one_line():
    assert label("a\n b\x00c\u202e") == "a b c"
    assert label("x" * 30, 10) == "x" * 9 + "…"
    assert label("encoder.layer.0.query", 12, tail=5) == "encode…query"


def test_figures_read_as_people_write_them():
    assert (percent(-0.0123), points(0.0), points(-0.0004), points(0.021)) == (
        "−1.2 %",
        "0.0",
        "0.0",
        "+2.1",
    )
    assert (signed(-1.5), size(1234.4)) == ("−1.500", "1.23 kB")
