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


# libraries whose errors derive from Exception alone: validation of a config, safetensors
_OWN_ROOTS = ("huggingface_hub", "safetensors", "tokenizers")


class RootlessErrors:
    """A context in which such errors, and bare ones (Rust code raises Exception itself), are RuntimeErrors.

    So that FOREIGN_ERRORS names them too, and nothing else is caught.
    """

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        if kind is None or error is None or isinstance(error, FOREIGN_ERRORS):
            return
        # a panic of Rust is no Exception, for fear that it is caught: its library's state is not used on
        panic = kind.__name__ == "PanicException" and kind.__module__ == "pyo3_runtime"
        if panic or kind is Exception or kind.__module__.split(".")[0] in _OWN_ROOTS:
            raise RuntimeError(first_line(error)) from error


def first_line(error: BaseException) -> str:
    """What went wrong, in one line: the type and the first line of the message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__
