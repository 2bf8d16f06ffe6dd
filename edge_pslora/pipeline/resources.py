"""What a run has used so far, held against its budgets."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from edge_pslora.config import BudgetConfig
from edge_pslora.errors import BudgetError

# kept back for what comes after training: merge, export, checks
RESERVED_SHARE = 0.2


def peak_rss_bytes() -> int:
    """The largest resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # VmHWM starts anew at exec; ru_maxrss would still count the process that started this one
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@dataclass
class Meter:
    """Time and memory of one run; `start` in seconds of time.monotonic."""

    budget: BudgetConfig
    start: float = field(default_factory=time.monotonic)
    reserve: float | None = None

    def seconds(self) -> float:
        return time.monotonic() - self.start

    def check_memory(self, where: str) -> None:
        """Raises BudgetError when the peak so far is above --ram-budget."""
        limit = self.budget.ram_bytes
        if limit is not None and (peak := peak_rss_bytes()) > limit:
            raise BudgetError(
                "--ram-budget",
                expected=f"at most {limit} bytes",
                found=f"{peak} bytes at {where}",
                remedy=f"nothing was changed; allow at least {peak} bytes, or use a smaller "
                "--batch-size, --max-length or model",
            )

    def stop_reason(self) -> str:
        """Why training should end now, or ""; asked at every step."""
        self.check_memory("training")
        limit = self.budget.time_seconds
        if limit is None:
            return ""
        if self.reserve is None:
            # what came before the first step (features, encoding) comes again after the last
            self.reserve = self.seconds() + RESERVED_SHARE * limit
        return "time budget" if self.seconds() + self.reserve >= limit else ""


Stop = Callable[[], str]
