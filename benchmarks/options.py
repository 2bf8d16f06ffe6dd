"""What the command lines of the benchmarks share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence


def count(least: int) -> Callable[[str], int]:
    """For argparse: reads a whole number from `least` on."""

    def read(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"expected at least {least}, found {value}")
        return value

    return read


def given(arguments: Sequence[str] | None) -> list[str]:
    """The arguments as argparse takes them: those of the process where None."""
    return list(sys.argv[1:] if arguments is None else arguments)
