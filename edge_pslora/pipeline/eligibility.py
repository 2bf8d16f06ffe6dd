"""Whether the device may learn now: asked before the session and while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from edge_pslora.config import EligibilityConfig
from edge_pslora.errors import NotEligibleError
from edge_pslora.pipeline.system import SystemState, read_state
from edge_pslora.units import format_size

INTERVAL = 1.0  # seconds between two looks


def broken_rule(config: EligibilityConfig, state: SystemState) -> tuple[str, str, str] | None:
    """(option, what it asks for, what is found) of the first rule that does not hold; None: all do.

    What the system does not tell cannot be said to hold, but for mains: a device without a battery and
    without a word about its supply has no other.
    """
    power = state.on_power if state.on_power is not None else state.battery is None
    rules = (
        ("--only-on-power", config.only_on_power, power, "mains power", "none"),
        (
            "--min-battery",
            config.min_battery is not None,
            # no battery at all: it cannot run empty
            (state.battery is None and power)
            or _holds(state.battery, config.min_battery, at_least=True),
            f"a charge of at least {config.min_battery}%",
            f"{state.battery}%",
        ),
        (
            "--max-temperature",
            config.max_temperature is not None,
            _holds(state.temperature, config.max_temperature),
            f"at most {config.max_temperature} degrees",
            _said(state.temperature),
        ),
        (
            "--max-load",
            config.max_load is not None,
            _holds(state.load, config.max_load),
            f"a load of at most {config.max_load}",
            _said(state.load),
        ),
        (
            "--min-free",
            config.min_free is not None,
            _holds(state.free, config.min_free, at_least=True),
            f"{format_size(config.min_free or 0)} free",
            "nothing known" if state.free is None else f"{format_size(state.free)} free",
        ),
    )
    for option, asked, holds, expected, found in rules:
        if asked and not holds:
            return option, expected, found
    return None


def _holds(value: float | None, limit: float | None, *, at_least: bool = False) -> bool:
    if value is None or limit is None:
        return False
    return value >= limit if at_least else value <= limit


def _said(value: float | None) -> str:
    return "no word from the system" if value is None else f"{value:.4g}"


@dataclass
class Watch:
    """Looks at most once a second; see `check`."""

    config: EligibilityConfig
    folder: Path
    sysfs: Path = Path("/sys")
    clock: Callable[[], float] = time.monotonic
    _next: float = field(default=float("-inf"))

    def check(self, when: str = "") -> None:
        """Raises NotEligibleError: a rule does not hold (any more)."""
        if self.config == EligibilityConfig() or self.clock() < self._next:
            return
        self._next = self.clock() + INTERVAL
        broken = broken_rule(self.config, read_state(self.folder, self.sysfs))
        if broken is not None:
            option, expected, found = broken
            raise NotEligibleError(
                option,
                expected=expected,
                found=f"{found}{' ' if when else ''}{when}",
                remedy="nothing was changed; the same command goes on where it stopped",
            )
