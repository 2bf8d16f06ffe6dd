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
from pathlib import Path
from typing import Any, TextIO

import torch

# Two inputs that share an axis name: the exporter keeps the first and says so. That is wanted.
_SHARED_AXIS = r"# The axis name: .* will not be used, since it shares the same shape constraints"
# torch calls its own deprecated name.
_LEAF_SPEC = r"`isinstance\(treespec, LeafSpec\)` is deprecated"
# What torch says to everybody who uses its older exporter, which here is the second choice on purpose.
_OLDER = (
    "You are using the legacy TorchScript-based ONNX export",
    "The feature will be removed. Please remove usage of this function",
)
# Loggers, and how their line begins that says nothing here: torchvision's operators are not needed, and
# where the model failed stands in the error.
_LINES = {
    "torch.onnx._internal.exporter._registration": "torchvision is not installed",
    "torch.fx.experimental.symbolic_shapes": "Unable to find user code corresponding to",
}


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Hide two known warnings, two known log lines and, when the block fails, what it wrote to
    stderr: torch.export prints the graph there, and the error says why anyway."""
    for name in _LINES:
        logging.getLogger(name).addFilter(_is_news)
    held = _Held(sys.stderr)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(held):
            warnings.filterwarnings("ignore", message=_SHARED_AXIS, category=UserWarning)
            warnings.filterwarnings("ignore", message=_LEAF_SPEC, category=FutureWarning)
            yield
        sys.stderr.write(held.text())
    finally:
        for name in _LINES:
            logging.getLogger(name).removeFilter(_is_news)


@contextmanager
def quiet_tracer() -> Iterator[list[str]]:
    """Hide that the exporter is an older one; where tracing fixed a decision is news, and collected.

    Yields:
        "net.py:18" for each place where Python took a value or a size out of a tensor, filled when the
        block ends. Other warnings are passed on then.
    """
    fixed: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with _no_graph_log():
            yield fixed
    for warning in caught:
        if issubclass(warning.category, torch.jit.TracerWarning):  # type: ignore[attr-defined]
            place = f"{Path(warning.filename).name}:{warning.lineno}"
            fixed.extend([place] if place not in fixed else [])
        elif not (
            issubclass(warning.category, DeprecationWarning)
            and str(warning.message).startswith(_OLDER)
        ):
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )


@contextmanager
def _no_graph_log() -> Iterator[None]:
    """torch 2.13 tests the function that says whether its log is on, not what it returns: the log goes
    on for good, and the graph of a model that fails is printed to the process's stdout."""
    library: Any = torch._C
    log = getattr(library, "_jit_onnx_log", None)
    if log is None:
        yield
        return
    library._jit_onnx_log = _discard
    try:
        yield
    finally:
        library._jit_onnx_log = log


def _discard(*parts: object) -> None:
    """In the place of a log."""


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
    return not record.getMessage().startswith(tuple(_LINES.values()))
