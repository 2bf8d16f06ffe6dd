"""Templates to pages. Every text is escaped by the template engine, but our own style and drawings."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING, Any

from edge_pslora.charts.types import Chart
from edge_pslora.units import format_duration, format_size

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

_TEMPLATES = ("base.html", "parts.html", "workspace.html", "comparison.html")


def page_environment() -> Environment:
    """What every page is rendered by; `style` is the style sheet of all of them."""
    # Jinja takes a while to import, and only what writes a page needs it.
    from jinja2 import DictLoader, Environment, StrictUndefined
    from markupsafe import Markup

    folder = files("edge_pslora.pages")
    there = {name: (folder / name).read_text(encoding="utf-8") for name in _TEMPLATES}
    environment = Environment(
        loader=DictLoader(there),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "size": format_size,
        "duration": format_duration,
        "drawing": _drawing,
    }
    environment.globals["style"] = Markup((folder / "style.css").read_text(encoding="utf-8"))
    return environment


def render_page(template: str, **facts: Any) -> str:
    """The page of one of the templates."""
    return page_environment().get_template(template).render(**facts)


def _drawing(chart: Chart) -> Markup:
    """Written by charts.svg, which escapes what it writes."""
    from markupsafe import Markup

    return Markup(chart.svg)
