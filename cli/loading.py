"""Imports of torch and all that needs it, out of sight of Python's search for circular garbage."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def heavy_imports() -> Iterator[None]:
    """What is imported inside is not searched, neither while it loads nor by any later collection.

    A session collects three times, and each time would walk through all that torch loaded. Does
    nothing in a process that has torch already: what else that process holds may be garbage one day.
    """
    if "torch" in sys.modules:
        yield
        return
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
