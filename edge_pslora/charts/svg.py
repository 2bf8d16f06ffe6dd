"""matplotlib's SVG as a piece of a page: no ids, no links, no metadata, colours by variables.

Only the few elements and properties named here are written again; anything else is an error, so that
what a later matplotlib adds does not slip into a page. All text is escaped here, whatever drew it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from html import escape
from xml.etree import ElementTree

from edge_pslora.charts.palette import CODE, css

_SPACE = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"
_DROPPED = {"metadata", "defs", "style"}
_SHAPES = {"path": ("d",), "rect": ("x", "y", "width", "height"), "text": ("x", "y")}
_PROPERTIES = {
    *("fill", "fill-opacity", "opacity", "stroke", "stroke-dasharray", "stroke-linecap"),
    *("stroke-linejoin", "stroke-opacity", "stroke-width", "text-anchor", "font-size"),
    "font-weight",
}
# the page's style sheet has these, or the page's own fonts are better
_LEFT_OUT = {"font-family", "stroke-dashoffset", "stroke-miterlimit"}
_FONT = re.compile(r"(?:(?P<weight>[1-9]00) )?(?P<size>[0-9.]+px) .*")
_NUMBER = re.compile(r"-?[0-9]+\.[0-9]+")

Style = Mapping[str, str]


def inline(drawing: str, key: str, title: str, text: str) -> str:
    """The `<svg>` element for a page.

    Args:
        drawing: what matplotlib wrote, in the colours of palette.py.
        key: unique on the page.
        title, text: what a screen reader says.

    Raises:
        ValueError: an element, property or colour that is not known here.
    """
    root = ElementTree.fromstring(drawing)
    marks = {
        mark.attrib["id"]: mark
        for mark in root.iter(f"{_SPACE}path")
        if "id" in mark.attrib  # markers; clip paths are rectangles, and nothing needs clipping
    }
    body = "".join(_element(child, marks, {}) for child in root)
    return (
        f'<svg class="drawing" viewBox="{escape(root.attrib["viewBox"])}" role="img" '
        f'aria-labelledby="{key}-title {key}-text">'
        f'<title id="{key}-title">{escape(title)}</title>'
        f'<desc id="{key}-text">{escape(text)}</desc>{body}</svg>'
    )


def _element(
    node: ElementTree.Element, marks: Mapping[str, ElementTree.Element], inherited: Style
) -> str:
    name = node.tag.removeprefix(_SPACE)
    if name in _DROPPED:
        return ""
    if name == "g":
        style = {**inherited, **_style(node)}
        return "".join(_element(child, marks, style) for child in node)
    if name == "use":
        mark = marks[node.attrib[_LINK].removeprefix("#")]
        at = f"translate({_rounded(node.attrib['x'])} {_rounded(node.attrib['y'])})"
        style = {**inherited, **_style(mark), **_style(node)}
        return f'<path d="{_path(mark)}" transform="{at}"{_css(style)}/>'
    if name == "path":
        if not node.attrib.get("d", "").strip():
            return ""
        return f'<path d="{_path(node)}"{_css({**inherited, **_style(node)})}/>'
    if name not in _SHAPES:
        raise ValueError(f"a drawing: expected known elements; found {name}")
    attributes = [(a, _rounded(node.attrib[a])) for a in _SHAPES[name] if a in node.attrib]
    turned = node.attrib.get("transform", "")
    if turned and not turned.startswith("rotate(-0 "):
        attributes.append(("transform", _rounded(turned)))
    written = "".join(f' {a}="{escape(value)}"' for a, value in attributes)
    look = _css({**inherited, **_style(node)})
    return f"<{name}{written}{look}>{escape(node.text or '')}</{name}>"


def _path(node: ElementTree.Element) -> str:
    return _rounded(" ".join(node.attrib["d"].split()))


def _rounded(text: str) -> str:
    """Hundredths of a pixel are enough, and half of the bytes."""
    return _NUMBER.sub(lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), text)


def _style(node: ElementTree.Element) -> dict[str, str]:
    found = dict(_declarations(node.attrib.get("style", "")))
    unknown = found.keys() - _PROPERTIES - _LEFT_OUT
    if unknown:
        raise ValueError(f"a drawing: expected known properties; found {', '.join(unknown)}")
    return {name: value for name, value in found.items() if name in _PROPERTIES}


def _declarations(style: str) -> Iterator[tuple[str, str]]:
    for declaration in style.split(";"):
        name, colon, value = (part.strip() for part in declaration.partition(":"))
        if not colon:
            continue
        short = _FONT.fullmatch(value) if name == "font" else None
        if short is not None:  # matplotlib 3.9: all of the font in one property
            yield "font-size", short["size"]
            if short["weight"]:
                yield "font-weight", short["weight"]
        else:
            yield name, value


def _css(style: Style) -> str:
    """As an attribute; the stand-in colours become variables."""
    parts = []
    for name, value in sorted(style.items()):
        if name in ("fill", "stroke") and value != "none":
            value = css(value)
        elif CODE.search(value):
            raise ValueError(f"a drawing: expected a colour in fill or stroke; found {name}")
        parts.append(f"{name}:{_rounded(value)}")
    return f' style="{escape("; ".join(parts))}"' if parts else ""
