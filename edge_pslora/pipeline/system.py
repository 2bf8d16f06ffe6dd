"""The device's state as Linux shows it in /sys and /proc; psutil, where it is installed, for other systems.

Nothing is held open and nothing is cached: a look takes well under a millisecond.
"""

from __future__ import annotations

import importlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class SystemState:
    """What is known; None: the system does not say.

    on_power: mains is plugged in. battery: its charge in percent, of several the least. temperature:
    degrees Celsius of the hottest sensor. load: processes that run or wait, mean of a minute. free:
    bytes left to us on the workspace's file system.
    """

    on_power: bool | None = None
    battery: float | None = None
    temperature: float | None = None
    load: float | None = None
    free: int | None = None


def read_state(folder: Path, sysfs: Path = Path("/sys")) -> SystemState:
    """folder: of the workspace, or its nearest parent that exists. sysfs: where /sys is mounted."""
    supplies = _folders(sysfs / "class" / "power_supply")
    kinds = {path: _text(path / "type") for path in supplies}
    mains = [_number(p / "online") for p, kind in kinds.items() if kind in ("Mains", "USB")]
    charges = [
        _number(p / "capacity")
        for p, kind in kinds.items()
        # that of a mouse or of a keyboard has the scope "Device"
        if kind == "Battery" and _text(p / "scope") != "Device"
    ]
    charge = min((c for c in charges if c is not None), default=None)
    known = [online > 0 for online in mains if online is not None]
    power = any(known) if known else None
    if power is None and charge is None and not supplies:
        power, charge = _psutil_battery()
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return SystemState(power, charge, _hottest(sysfs), _load(), shutil.disk_usage(folder).free)


def _hottest(sysfs: Path) -> float | None:
    zones = [_number(p / "temp") for p in _folders(sysfs / "class" / "thermal")]
    sensors = [
        _number(path)
        for folder in _folders(sysfs / "class" / "hwmon")
        for path in sorted(folder.glob("temp*_input"))
    ]
    # millidegrees; a sensor that is switched off says 0 or less than any room has
    found = [n / 1000 for n in (*zones, *sensors) if n is not None and -40_000 < n < 200_000]
    return max(found, default=None)


def _load() -> float | None:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _psutil_battery() -> tuple[bool | None, float | None]:
    try:
        psutil: Any = importlib.import_module("psutil")
    except ModuleNotFoundError:
        return None, None
    read = getattr(psutil, "sensors_battery", None)
    found = None if read is None else read()
    return (None, None) if found is None else (found.power_plugged, float(found.percent))


def _folders(path: Path) -> list[Path]:
    return sorted(path.iterdir()) if path.is_dir() else []


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:  # not there, or a driver that answers with an error
        return ""


def _number(path: Path) -> float | None:
    try:
        return float(_text(path))
    except ValueError:
        return None
