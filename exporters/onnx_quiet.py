"""Silence for what torch's exporter says on every run, and for nothing else."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

# Two inputs that share an axis name: the exporter keeps the first and says so. That is wanted.
_SHARED_AXIS = r"# The axis name: .* will not be used, since it shares the same shape constraints"
# torch calls its own deprecated name.
_LEAF_SPEC = r"`isinstance\(treespec, LeafSpec\)` is deprecated"
_REGISTRY_LOGGER = "torch.onnx._internal.exporter._registration"


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Hide two known warnings, the "torchvision is not installed" lines and, when the block fails,
    what it wrote to stderr: torch.export prints the graph there, and the error says why anyway."""
    registry = logging.getLogger(_REGISTRY_LOGGER)
    registry.addFilter(_is_news)
    held = _Held(sys.stderr)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(held):
            warnings.filterwarnings("ignore", message=_SHARED_AXIS, category=UserWarning)
            warnings.filterwarnings("ignore", message=_LEAF_SPEC, category=FutureWarning)
            yield
        sys.stderr.write(held.text())
    finally:
        registry.removeFilter(_is_news)


class _Held(io.TextIOBase):
    """Keeps what this thread writes; other threads (a progress bar) write through."""

    def __init__(self, real: TextIO) -> None:
        self._real = real
        self._owner = threading.get_ident()
        self._kept = io.StringIO()

    def write(self, text: str) -> int:
        mine = threading.get_ident() == self._owner
        return (self._kept if mine else self._real).write(text)

    def flush(self) -> None:
        self._real.flush()

    def isatty(self) -> bool:
        return self._real.isatty()

    def fileno(self) -> int:
        return self._real.fileno()

    def text(self) -> str:
        return self._kept.getvalue()


def _is_news(record: logging.LogRecord) -> bool:
    return "torchvision is not installed" not in record.getMessage()
