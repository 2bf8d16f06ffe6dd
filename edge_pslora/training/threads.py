"""How many threads torch should use for a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def at_most(threads: int | None) -> Iterator[None]:
    """Within the block torch uses no more than `threads` threads; None leaves it alone.

    On networks of a few thousand weights the threads wait for each other longer than they work.
    """
    before = torch.get_num_threads()
    if threads is not None and threads < before:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
