"""Raw labels in nine bytes a row: numbers as they are, everything else by its place in a word list."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np
import numpy.typing as npt

RawLabel = str | int | float | bool

TEXT, BOOLEAN, WHOLE, FRACTION, HUGE = range(5)  # HUGE: an integer that a double cannot hold
GROUP = np.array([0, 1, 2, 2, 2], dtype=np.int8)  # of each kind, in KIND_NAMES
KIND_NAMES = ("text", "true/false", "number")
_EXACT = 2**53
_BLOCK = 1 << 16


class LabelColumn:
    """Appended one by one; see `kinds` and `numbers` for all at once."""

    def __init__(self) -> None:
        self._kinds = array("b")
        self._values = array("d")
        self._words: dict[str | int, int] = {}
        self._listed: list[str | int] = []

    def __len__(self) -> int:
        return len(self._kinds)

    def __getitem__(self, index: int) -> RawLabel:
        kind, value = self._kinds[index], self._values[index]
        if kind in (TEXT, HUGE):
            return self._listed[int(value)]
        if kind == BOOLEAN:
            return bool(value)
        return int(value) if kind == WHOLE else value

    def append(self, label: RawLabel) -> None:
        if isinstance(label, bool):
            kind, value = BOOLEAN, float(label)
        elif isinstance(label, float):
            kind, value = FRACTION, label
        elif isinstance(label, int) and abs(label) <= _EXACT:
            kind, value = WHOLE, float(label)
        else:
            kind = TEXT if isinstance(label, str) else HUGE
            place = self._words.setdefault(label, len(self._words))
            if place == len(self._listed):
                self._listed.append(label)
            value = float(place)
        self._kinds.append(kind)
        self._values.append(value)

    def kinds(self) -> npt.NDArray[np.int8]:
        """int8 [N]: TEXT, BOOLEAN, ... Nothing can be appended while it is in use."""
        return np.frombuffer(self._kinds, dtype=np.int8) if self._kinds else np.zeros(0, np.int8)

    def numbers(self) -> npt.NDArray[np.float64]:
        """float64 [N]; places in the word list where the label is no number. Likewise."""
        values = np.frombuffer(self._values, dtype=np.float64) if self._values else np.zeros(0)
        huge = np.flatnonzero(self.kinds() == HUGE)
        if len(huge):
            values = values.copy()
            values[huge] = [float(self._listed[int(values[i])]) for i in huge]
        return values

    def distinct(self, rows: npt.NDArray[np.int64]) -> tuple[list[RawLabel], npt.NDArray[np.int32]]:
        """The different labels of `rows`, and for each row (int32 [K]) which of them it is."""
        known: dict[tuple[int, float], int] = {}
        labels: list[RawLabel] = []
        codes = np.empty(len(rows), dtype=np.int32)
        kinds, values = self.kinds(), np.frombuffer(self._values, dtype=np.float64)
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            for kind in np.unique(kinds[block]):
                chosen = np.flatnonzero(kinds[block] == kind)
                found, first, inverse = np.unique(
                    values[block[chosen]], return_index=True, return_inverse=True
                )
                places = np.empty(len(found), dtype=np.int32)
                for i, value in enumerate(found.tolist()):
                    places[i] = known.setdefault((int(kind), value), len(labels))
                    if places[i] == len(labels):
                        labels.append(self[int(block[chosen[first[i]]])])
                codes[start + chosen] = places[inverse]
        return labels, codes


def unique_values(values: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """The different values in order and how often each comes, without a sorted copy of all of them."""
    counts: dict[Any, int] = {}
    for start in range(0, len(values), _BLOCK):
        found, times = np.unique(values[start : start + _BLOCK], return_counts=True)
        for value, count in zip(found.tolist(), times.tolist(), strict=True):
            counts[value] = counts.get(value, 0) + count
    names = sorted(counts)
    return np.array(names, dtype=values.dtype), np.array([counts[n] for n in names], dtype=np.int64)
