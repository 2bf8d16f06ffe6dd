"""Both pages in a real Chromium: no complaint, nothing loaded, nothing cut, the figures of the files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_pslora.compare.page import comparison_page
from edge_pslora.pages.workspace import workspace_page
from tests.compare import comparison_kit
from tests.pages import pages_kit as kit
from tests.pages.browser_kit import CHROMIUM, LAYOUT, TOO_WIDE, Browser, browser

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]
pytest.importorskip("matplotlib", reason="the charts are an extra")


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    workspace = kit.make_workspace(folder / "w", 30, layers=36, refused=1)
    written = {
        "workspace": workspace_page(workspace),
        "comparison": comparison_page(*comparison_kit.page_arguments()),
    }
    for name, page in written.items():
        (folder / f"{name}.html").write_text(page, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in written}


@pytest.mark.parametrize("name", ["workspace", "comparison"])
def test_a_reader_sees_all_of_it(tab: Browser, pages: dict[str, Path], name: str):
    colours = set()
    for width, dark in ((1100, False), (390, True)):
        tab.open(pages[name], width=width, dark=dark)
        assert tab.complaints == []
        assert tab.requests == [pages[name].as_uri()]
        assert tab.ask(LAYOUT) == []
        assert tab.ask(TOO_WIDE) <= 0
        ink = "getComputedStyle(document.querySelector('svg.drawing text')).fill"
        paper = "getComputedStyle(document.querySelector('figure.card')).backgroundColor"
        colours |= {tab.ask(ink), tab.ask(paper)}
    assert len(colours) == 4  # text and paper of light and dark
    assert tab.ask("document.querySelectorAll('svg.drawing').length") >= 5


@pytest.mark.parametrize("name", ["workspace", "comparison"])
def test_what_the_browser_shows_is_what_the_file_says(
    tab: Browser, pages: dict[str, Path], name: str
):
    tab.open(pages[name], width=1100, dark=False)
    shown = kit.Tables(tab.ask("document.documentElement.outerHTML"))
    written = kit.Tables(pages[name].read_text(encoding="utf-8"))
    assert shown.figures == written.figures
    assert "script" not in shown.tags
    # markup in a name would have made an element: the visible text is the name
    assert "<script>" in tab.ask("document.body.innerText")


def test_thirty_generations_stay_below_a_megabyte(pages: dict[str, Path]):
    assert pages["workspace"].stat().st_size < 1_000_000
