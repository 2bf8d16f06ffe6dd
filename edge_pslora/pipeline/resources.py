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
from edge_pslora.pipeline.wear import written_bytes
from edge_pslora.units import format_size

# kept back for what comes after training: merge, export, checks
RESERVED_SHARE = 0.2


def _status(key: str) -> int | None:
    """A size of this process in bytes, from the system's own account; None where there is none."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    return None


def rss_bytes() -> int:
    """The resident memory of this process now; where the system does not say, the largest so far."""
    now = _status("VmRSS")
    return peak_rss_bytes() if now is None else now


def peak_rss_bytes() -> int:
    """The largest resident memory of this process so far, in bytes."""
    # VmHWM starts anew at exec; ru_maxrss would still count the process that started this one
    known = _status("VmHWM")
    if known is not None:
        return known
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@dataclass
class Meter:
    """Time and memory of one run; `start` in seconds of time.monotonic."""

    budget: BudgetConfig
    start: float = field(default_factory=time.monotonic)
    reserve: float | None = None
    written_before: int | None = field(default_factory=written_bytes)

    def written(self) -> int | None:
        """Bytes written since the run began; None: the system does not count them."""
        now = written_bytes()
        return None if now is None or self.written_before is None else now - self.written_before

    def seconds(self) -> float:
        return time.monotonic() - self.start

    def check_memory(self, where: str) -> None:
        """Raises BudgetError when the peak so far is above --ram-budget."""
        limit = self.budget.ram_bytes
        if limit is not None and (peak := peak_rss_bytes()) > limit:
            raise BudgetError(
                "--ram-budget",
                expected=f"at most {format_size(limit)}",
                found=f"{format_size(peak)} at {where}",
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
