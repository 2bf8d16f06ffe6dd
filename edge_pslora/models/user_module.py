"""Importing `package.module:factory` and calling it."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from edge_pslora.errors import ModelError
from edge_pslora.models.failures import FOREIGN_ERRORS, first_line

_REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def is_reference(text: str) -> bool:
    """Whether the text reads `package.module:factory`."""
    return _REFERENCE.fullmatch(text) is not None


def build_module(reference: str) -> nn.Module:
    """The module that `package.module:factory` returns, called without arguments.

    The current directory can be imported from, as with `python -m`.

    Raises:
        ModelError: it cannot be imported or called, or returns something else.
    """
    where = f"--model {reference}"
    package, _, path = reference.partition(":")
    try:
        with _current_directory_on_path():
            factory: object = importlib.import_module(package)
            for name in path.split("."):
                factory = getattr(factory, name)
            module = factory() if callable(factory) else factory
    except FOREIGN_ERRORS as error:
        raise ModelError(
            where,
            expected="a function that is importable from here and takes no arguments",
            found=first_line(error),
            remedy=f"run where `python -c 'import {package}'` works, or set PYTHONPATH",
        ) from error
    if not isinstance(module, nn.Module):
        raise ModelError(
            where,
            expected="a function that returns a torch.nn.Module",
            found=type(module).__name__,
            remedy="name a function that builds the model",
        )
    return module


@contextmanager
def _current_directory_on_path() -> Iterator[None]:
    here = str(Path.cwd())
    if "" in sys.path or here in sys.path:
        yield
        return
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)
