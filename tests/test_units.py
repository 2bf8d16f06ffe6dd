"""Sizes and durations: what people write, and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_pslora.errors import UsageError
from edge_pslora.units import format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("4096B", 4096),
        ("1MB", 10**6),
        ("1 MB", 10**6),
        ("1mb", 10**6),
        ("1M", 10**6),
        ("1MiB", 2**20),
        ("512KiB", 512 * 1024),
        ("1.5GB", 1_500_000_000),
        ("2GiB", 2 * 2**30),
        ("1TB", 10**12),
        ("9007199254740993", 2**53 + 1),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "MB",
        "-1MB",
        "1XB",
        "1iB",
        "1MB2",
        "1e6",
        "nan",
        "inf",
        "1.MB",
        "٣MB",
        "9" * 40,
        "1,5MB",
    ],
)
def test_what_is_not_a_size_is_named(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--ram-budget: expected .*; found .*; write a number"):
        parse_size(text, "--ram-budget")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("10m", 600),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        ("0.5h", 1800),
        ("1d", 86_400),
        ("1H30M5S", 5405),
        ("0.25s", 0.25),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", " ", "m", "-1m", "30m1h", "1w", "10 minutes", "nan", "inf", "1h30", "400d", "1e3"]
)
def test_what_is_not_a_duration_is_named(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--time-budget: expected .*; found .*; write a number"):
        parse_duration(text, "--time-budget")


@given(st.integers(0, 10**15))
def test_a_formatted_size_reads_back_to_three_digits(size: int) -> None:
    assert parse_size(format_size(size)) == pytest.approx(size, rel=5.001e-3, abs=0.5)


@given(st.floats(0, 30 * 86_400))
def test_a_formatted_duration_reads_back_to_its_last_unit(seconds: float) -> None:
    # The unit dropped is at most 1/24 of what is shown in days, 1/60 below.
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, rel=0.051, abs=0.01)


@given(st.integers(0, 10**6), st.sampled_from(["", "B", "kB", "MB", "GiB", "k", "M"]))
def test_case_and_space_do_not_matter(number: int, unit: str) -> None:
    size = parse_size(f"{number}{unit}")
    assert parse_size(f" {number} {unit.upper()} ") == size == parse_size(f"{number}{unit.lower()}")


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (999_999, "1.00 MB"), (1_234_567, "1.23 MB")],
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.42, "0.42s"), (9.14, "9.1s"), (42, "42s"), (90, "1m30s"), (7500, "2h05m"), (59.7, "1m00s")],
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
