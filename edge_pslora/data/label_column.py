"""Raw labels in nine bytes a row: numbers as they are, everything else by its place in a word list."""

from __future__ import annotations

from array import array

import numpy as np
import numpy.typing as npt

RawLabel = str | int | float | bool

TEXT, BOOLEAN, WHOLE, FRACTION, HUGE = range(5)  # HUGE: an integer that a double cannot hold
KIND_NAMES = ("text", "true/false", "number", "number", "number")
_EXACT = 2**53


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
        """int8 [N]: TEXT, BOOLEAN, ..."""
        return np.array(self._kinds, dtype=np.int8)

    def numbers(self) -> npt.NDArray[np.float64]:
        """float64 [N]; places in the word list where the label is no number."""
        values = np.array(self._values, dtype=np.float64)
        for i in np.flatnonzero(self.kinds() == HUGE):
            values[i] = float(self._listed[int(values[i])])
        return values

    def distinct(self, rows: npt.NDArray[np.int64]) -> tuple[list[RawLabel], npt.NDArray[np.int64]]:
        """The different labels of `rows`, and for each row (int64 [K]) which of them it is."""
        kinds, values = self.kinds()[rows], np.array(self._values, dtype=np.float64)[rows]
        labels: list[RawLabel] = []
        codes = np.empty(len(rows), dtype=np.int64)
        for kind in np.unique(kinds):
            chosen = kinds == kind
            _, first, inverse = np.unique(values[chosen], return_index=True, return_inverse=True)
            codes[chosen] = inverse + len(labels)
            where = rows[chosen]
            labels += [self[int(where[i])] for i in first]
        return labels, codes
