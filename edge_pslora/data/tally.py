"""Counting the rows that had to be set aside, and giving up when there are too many."""

from __future__ import annotations

from dataclasses import dataclass, field

from edge_pslora.data.options import ReadOptions
from edge_pslora.data.types import RejectedRow, Samples
from edge_pslora.errors import DataError

# A file of nothing but bad rows must not fill the memory with their descriptions.
MAX_REJECTED = 100_000


@dataclass(frozen=True)
class Part:
    """What one file or folder of files gave; notes: what was understood, one sentence each."""

    samples: Samples
    rejected: tuple[RejectedRow, ...]
    notes: tuple[str, ...] = ()


@dataclass
class Tally:
    """The rejected rows of one file. `weight` of a row is the number of lines that it spans."""

    source: str
    options: ReadOptions
    bad: int = 0
    _entries: list[tuple[int, RejectedRow]] = field(default_factory=list)

    def reject(self, position: int, where: str, reason: str, weight: int = 1) -> None:
        """Sets one row aside; `position` orders the rows in the file.

        Raises:
            DataError: there are more than MAX_REJECTED.
        """
        self.bad += weight
        self._entries.append((position, RejectedRow(where, reason)))
        if len(self._entries) > MAX_REJECTED:
            raise self._too_many(f"more than {MAX_REJECTED} rows")

    def close(self, good: int) -> tuple[RejectedRow, ...]:
        """The rejected rows in the order of the file, given `good` rows that were read.

        Raises:
            DataError: no good row, or more than options.max_bad_fraction bad ones.
        """
        if good == 0:
            raise self.no_rows()
        total = good + self.bad
        if self.bad > self.options.max_bad_fraction * total:
            raise self._too_many(f"{self.bad} of {total}")
        return tuple(row for _, row in sorted(self._entries, key=lambda entry: entry[0]))

    def no_rows(self) -> DataError:
        """The error for data without a single good row."""
        if self._entries:
            return self._too_many(f"{self.bad} of {self.bad}")
        return DataError(
            self.source,
            expected="at least one row of data",
            found="none",
            remedy="give a file or folder with rows",
        )

    def _too_many(self, count: str) -> DataError:
        _, first = min(self._entries, key=lambda entry: entry[0])
        return DataError(
            self.source,
            expected=f"at most {self.options.max_bad_fraction:.0%} unreadable rows",
            found=f"{count} (first: {first.where}: {first.reason})",
            remedy="repair the data",
        )
