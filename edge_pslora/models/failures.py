"""Errors that other people's code may raise while a model is built or run, named one by one."""

from __future__ import annotations

# A user's module and the transformers library raise what they like. KeyboardInterrupt, SystemExit
# and MemoryError are not a fault of the model and pass through.
FOREIGN_ERRORS: tuple[type[Exception], ...] = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


def first_line(error: BaseException) -> str:
    """What went wrong, in one line: the type and the first line of the message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__
