"""`make bench-heart`: one hospital after the other, with the built-in network; no target is set."""

from __future__ import annotations

import sys

from benchmarks.driver import Benchmark, main
from benchmarks.stream_loaders import heart

HEART = Benchmark("heart", heart, {})

if __name__ == "__main__":
    sys.exit(main(HEART))
