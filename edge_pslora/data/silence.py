"""What a C library writes to the process's stderr, past Python, while it decodes a damaged file."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def silent_stderr() -> Iterator[None]:
    """Sends descriptor 2 nowhere meanwhile: libtiff and libmpg123 print there whatever is wrong.

    A refused file is told of in one line, by us. Where there is no stderr nothing is done.
    """
    try:
        kept = os.dup(2)
    except OSError:
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        if sys.stderr is not None:
            sys.stderr.flush()  # what Python holds back belongs before
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
