"""Whether the libraries for signatures are there: they are an extra, only signed updates take them."""

from __future__ import annotations

from importlib.util import find_spec

from edge_pslora.errors import UsageError

_NEEDED = ("tuf", "securesystemslib", "cryptography")


def require_signing() -> None:
    """Call it before anything else of edge_pslora.signing is imported.

    Raises:
        UsageError: one of the libraries is not installed.
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise UsageError(
            "signed updates",
            expected=f"{', '.join(_NEEDED)}",
            found=f"no {', '.join(missing)}",
            remedy="run: pip install 'edge-pslora[signing]'",
        )
