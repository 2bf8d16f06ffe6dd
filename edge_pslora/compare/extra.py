"""Whether the library for statistics is there: it is an extra, only comparisons take it."""

from __future__ import annotations

from importlib.util import find_spec

from edge_pslora.errors import UsageError


def require_statistics() -> None:
    """Call it before a long comparison starts, not after it.

    Raises:
        UsageError: scipy is not installed.
    """
    if find_spec("scipy") is None:
        raise UsageError(
            "comparisons",
            expected="scipy, for intervals and tests",
            found="no scipy",
            remedy="run: pip install 'edge-pslora[compare]'",
        )
