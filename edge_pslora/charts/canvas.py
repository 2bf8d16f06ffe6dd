"""A matplotlib figure with our settings and none of the user's, and its SVG in the same bytes each time."""

from __future__ import annotations

import io
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from edge_pslora.charts import palette
from edge_pslora.charts.svg import inline

WIDTH = 380  # pixels of the view box: readable on a phone, where it is drawn at about 340
_INCH = 72
_SETTINGS = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "edge-pslora",
    "text.parse_math": False,  # a "$" in a label is a "$"
    "font.size": 11,
    "font.family": ["DejaVu Sans"],  # ships with matplotlib: the same layout on every machine
    "axes.unicode_minus": True,
    "axes.linewidth": 1,
    "axes.edgecolor": palette.LINE,
    "axes.labelcolor": palette.SOFT,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "grid.color": palette.LINE,
    "grid.linewidth": 1,
    "text.color": palette.INK,
    "xtick.color": palette.LINE,
    "ytick.color": palette.LINE,
    "xtick.labelcolor": palette.SOFT,
    "ytick.labelcolor": palette.SOFT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "path.simplify": False,
    "agg.path.chunksize": 0,
}


class Canvas:
    """One plot. `axes` is matplotlib's; `svg` closes it."""

    def __init__(self, figure: Any, axes: Any) -> None:
        self.figure = figure
        self.axes = axes

    def write(self, x: float, y: float, text: str, colour: str, height: float) -> None:
        """Text with its middle at a point."""
        self.axes.text(x, y, text, color=colour, fontsize=height, ha="center", va="center_baseline")

    def svg(self, key: str, title: str, text: str) -> str:
        """The `<svg>` element; see svg.inline."""
        for artist in self.axes.get_children():
            artist.set_clip_on(False)
        written = io.StringIO()
        with warnings.catch_warnings():
            # letters that DejaVu lacks are measured as boxes; the page's own fonts draw them
            warnings.filterwarnings("ignore", "Glyph", UserWarning)
            self.figure.savefig(written, format="svg", metadata={"Date": None})
        return inline(written.getvalue(), key, title, text)


@contextmanager
def canvas(height: float, width: float = WIDTH) -> Iterator[Canvas]:
    """A figure of so many pixels. Neither pyplot nor the user's matplotlibrc has a say in it."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    kept = {k: v for k, v in matplotlib.rcParamsDefault.items() if not k.startswith("backend")}
    with matplotlib.rc_context({**kept, **_SETTINGS}):
        figure = Figure(figsize=(width / _INCH, height / _INCH), layout="constrained")
        FigureCanvasSVG(figure)
        yield Canvas(figure, figure.subplots())


def label(name: str, most: int = 18, *, tail: int = 0) -> str:
    """A user's name as a label: one line, no control characters, cut but for its last `tail` letters."""
    flat = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in name)
    flat = " ".join(flat.split())
    if len(flat) <= most:
        return flat
    return flat[: most - 1 - tail] + "…" + (flat[-tail:] if tail else "")
