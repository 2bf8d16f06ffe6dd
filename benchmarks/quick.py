"""`make bench-quick`: the PACS yardstick, held to the targets of the issue and METHOD.md's trial."""

from __future__ import annotations

import sys

from benchmarks.driver import Benchmark, main
from benchmarks.figures import Targets
from benchmarks.methods import DEFAULT, JOINT_LINEAR, SEQUENTIAL
from benchmarks.stream_loaders import pacs

QUICK = Benchmark(
    "quick",
    pacs,
    {
        SEQUENTIAL: Targets(about_average=0.69, about_backward=-0.20),
        DEFAULT: Targets(average=0.80),
        JOINT_LINEAR: Targets(about_average=0.85),
    },
)

if __name__ == "__main__":
    sys.exit(main(QUICK))
