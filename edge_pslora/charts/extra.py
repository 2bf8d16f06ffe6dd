"""Whether the library that draws is there: it is an extra; without it, pages have tables only."""

from __future__ import annotations

from importlib.util import find_spec

REMEDY = "pip install 'edge-pslora[charts]'"


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None
