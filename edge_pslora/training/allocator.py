"""glibc's allocator: what is free goes back to the system, on demand or always; elsewhere nothing."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
# each block from this size on is mapped by itself, and unmapped when it is freed. glibc's own threshold
# grows to 32 MiB with what was freed, so that activations end up in a heap full of holes.
_MAPPED_FROM = 1 << 20


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None


def give_back() -> None:
    """Free pages anywhere in the heap go back to the system; milliseconds."""
    if (library := _glibc()) is not None:
        library.malloc_trim(0)


def return_at_once() -> bool:
    """From here on large blocks go back when they are freed: less memory, 10 to 40 % more time in steps.

    False: this system's allocator has no such setting.
    """
    library = _glibc()
    if library is None:
        return False
    done = library.mallopt(_MMAP_THRESHOLD, _MAPPED_FROM)
    return bool(done and library.mallopt(_TRIM_THRESHOLD, _MAPPED_FROM))


def keep_freed() -> bool:
    """The opposite, as glibc sets itself after a few large blocks were freed."""
    library = _glibc()
    if library is None:
        return False
    done = library.mallopt(_MMAP_THRESHOLD, 32 << 20)
    return bool(done and library.mallopt(_TRIM_THRESHOLD, 64 << 20))
