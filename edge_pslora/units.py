"""Sizes and durations as people write them, to bytes and seconds, and back.

K, M, G, T with or without B are powers of 1000 (MB = 10**6); with an i they are powers of 1024
(MiB = 2**20). d, h, m, s are days to seconds.
"""

from __future__ import annotations

import re

from edge_pslora.errors import UsageError

_PREFIXES = ("", "k", "m", "g", "t")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)(b?)", re.ASCII | re.IGNORECASE)
_DURATION_UNITS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_DURATION = re.compile(
    r"(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?",
    re.ASCII | re.IGNORECASE,
)
_LARGEST_SIZE = 2**63 - 1
_LARGEST_DURATION = 366 * 86_400.0


def parse_size(text: str, where: str = "size") -> int:
    """Bytes in `text`, a number of bytes or a number with a unit.

    Args:
        text: such as "4096", "512KiB", "1.5 GB"; upper and lower case mean the same.
        where: the option that the error names.

    Raises:
        UsageError: not a size, or larger than 2**63 - 1 bytes.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or (match[3] and not match[2]):
        raise _not_understood(where, "a size such as 512KiB, 1MB or 2GiB", text)
    scale = 1
    for _ in range(_PREFIXES.index(match[2].lower())):
        scale *= 1024 if match[3] else 1000
    # Whole numbers do not go through a float: 2**53 + 1 bytes stay what they are.
    whole = match[1].isdigit()
    size = int(match[1]) * scale if whole else round(float(match[1]) * scale)
    if size > _LARGEST_SIZE:
        raise _not_understood(where, "at most 2**63 - 1 bytes", text)
    return size


def parse_duration(text: str, where: str = "duration") -> float:
    """Seconds in `text`, a number of seconds or numbers with units, the largest unit first.

    Args:
        text: such as "90", "90s", "10m", "1h30m", "0.5h".
        where: the option that the error names.

    Raises:
        UsageError: not a duration, or longer than 366 days.
    """
    flat = "".join(text.split())
    if re.fullmatch(r"\d+(?:\.\d+)?", flat, re.ASCII):
        flat += "s"
    match = _DURATION.fullmatch(flat)
    if match is None or not flat:
        raise _not_understood(where, "a duration such as 90s, 10m or 1h30m", text)
    seconds = sum(
        float(number) * scale
        for number, scale in zip(match.groups(), _DURATION_UNITS.values(), strict=True)
        if number is not None
    )
    if seconds > _LARGEST_DURATION:
        raise _not_understood(where, "at most 366 days", text)
    return seconds


def format_size(size: int) -> str:
    """`size` bytes with three significant digits and a decimal unit: "999 B", "1.23 MB"."""
    value, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        # 999.5 would be shown as 1000 with three digits.
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    digits = 0 if unit == "B" or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {unit}"


def format_duration(seconds: float) -> str:
    """`seconds` for people: "0.42s", "9.1s", "42s", "1m30s", "2h05m", "3d04h"."""
    if seconds < 0.995:
        return f"{seconds:.2f}s"
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3_600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86_400:
        return f"{whole // 3_600}h{whole % 3_600 // 60:02d}m"
    return f"{whole // 86_400}d{whole % 86_400 // 3_600:02d}h"


def _not_understood(where: str, expected: str, found: str) -> UsageError:
    return UsageError(
        where, expected=expected, found=repr(found), remedy="write a number with its unit"
    )
