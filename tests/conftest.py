"""One thread everywhere: the tests' networks are tiny, and results do not depend on the machine."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
