"""`make bench-text`: four text tasks one after the other, all labels competing; no target is set."""

from __future__ import annotations

import sys

from benchmarks.driver import Benchmark, main
from benchmarks.stream_loaders import text

TEXT = Benchmark("text", text, {})

if __name__ == "__main__":
    sys.exit(main(TEXT))
