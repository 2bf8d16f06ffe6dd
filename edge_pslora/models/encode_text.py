"""Texts as a model's input: ragged token ids, padded to the longest of each batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edge_pslora.data.spool import ByteSpool
from edge_pslora.data.types import Samples
from edge_pslora.errors import DataError

IDS, MASK, TYPES = "input_ids", "attention_mask", "token_type_ids"
CHUNK = 1000  # texts that are tokenised at a time, which bounds the memory of the Python lists


@dataclass(frozen=True)
class Tokens:
    """Token ids of some texts, ragged; types: segment ids likewise, if the model has them."""

    ids: Sequence[Sequence[int]]
    types: Sequence[Sequence[int]] | None = None


Tokenize = Callable[[Sequence[str]], Tokens]


@dataclass(frozen=True)
class EncodedTexts:
    """ids: int32 [sum of lengths]; offsets: int64 [N + 1] into it; types: like ids."""

    ids: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    pad_id: int
    types: npt.NDArray[np.int32] | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def batch(self, indices: npt.NDArray[np.int64]) -> dict[str, torch.Tensor]:
        """int64 [K, T] each, T = the longest of these texts; padded on the right."""
        lengths = self.lengths()[indices]
        mask = np.arange(lengths.max(initial=1)) < lengths[:, None]
        inputs = {
            IDS: torch.from_numpy(self._padded(self.ids, indices, self.pad_id).astype(np.int64)),
            MASK: torch.from_numpy(mask.astype(np.int64)),
        }
        if self.types is not None:
            padded = self._padded(self.types, indices, 0)
            inputs[TYPES] = torch.from_numpy(padded.astype(np.int64))
        return inputs

    def lengths(self) -> npt.NDArray[np.int64]:
        return np.diff(self.offsets)

    def to_arrays(self, indices: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]]:
        """input_ids int32 [K, T] padded, lengths int32 [K], token_type_ids int32 [K, T] if any."""
        arrays: dict[str, npt.NDArray[Any]] = {
            IDS: self._padded(self.ids, indices, self.pad_id),
            "lengths": self.lengths()[indices].astype(np.int32),
        }
        if self.types is not None:
            arrays[TYPES] = self._padded(self.types, indices, 0)
        return arrays

    def _padded(
        self, flat: npt.NDArray[np.int32], indices: npt.NDArray[np.int64], fill: int
    ) -> npt.NDArray[np.int32]:
        lengths = self.lengths()[indices]
        padded = np.full((len(indices), int(lengths.max(initial=1))), fill, np.int32)
        for row, index in enumerate(indices):
            start, end = self.offsets[index], self.offsets[index + 1]
            padded[row, : end - start] = flat[start:end]
        return padded


@dataclass(frozen=True)
class TextEncoder:
    """tokenize: ids (and types) of some texts, already cut to the model's length.

    with_types: the model takes token_type_ids.
    """

    tokenize: Tokenize
    pad_id: int
    with_types: bool = False

    @property
    def input_names(self) -> tuple[str, ...]:
        return (IDS, MASK, TYPES) if self.with_types else (IDS, MASK)

    def encode(self, samples: Samples) -> EncodedTexts:
        """Raises DataError: other data than texts."""
        if samples.modality != "text":
            raise DataError(
                "DATA",
                expected="texts, as in the first session",
                found=f"{samples.modality} data",
                remedy="use a new --workspace for another kind of data",
            )
        texts = samples.inputs
        ids, types = ByteSpool(), ByteSpool()
        offsets = np.zeros(len(texts) + 1, np.int64)
        for start in range(0, len(texts), CHUNK):
            tokens = self.tokenize([str(text) for text in texts[start : start + CHUNK]])
            for place, row in enumerate(tokens.ids, start + 1):
                # a text without any token still needs one position
                offsets[place] = max(1, len(row))
                ids.write(np.asarray(row or [self.pad_id], np.int32).tobytes())
            for row in (tokens.types or ()) if self.with_types else ():
                types.write(np.asarray(row or [0], np.int32).tobytes())
        np.cumsum(offsets, out=offsets)
        segments = types.array(np.int32) if self.with_types else None
        return EncodedTexts(ids.array(np.int32), offsets, self.pad_id, segments)

    def from_arrays(self, arrays: dict[str, npt.NDArray[Any]]) -> EncodedTexts:
        lengths = arrays["lengths"]
        ids = [row[:n] for row, n in zip(arrays[IDS], lengths, strict=True)]
        types = (
            [row[:n] for row, n in zip(arrays[TYPES], lengths, strict=True)]
            if self.with_types
            else None
        )
        return _encoded(ids, types, self.pad_id)


def _encoded(
    ids: Sequence[npt.NDArray[np.int32]],
    types: Sequence[npt.NDArray[np.int32]] | None,
    pad_id: int,
) -> EncodedTexts:
    offsets = np.zeros(len(ids) + 1, np.int64)
    np.cumsum([len(row) for row in ids], out=offsets[1:])
    return EncodedTexts(_flat(ids), offsets, pad_id, None if types is None else _flat(types))


def _flat(rows: Sequence[npt.NDArray[np.int32]]) -> npt.NDArray[np.int32]:
    return np.concatenate([np.zeros(0, np.int32), *rows]).astype(np.int32)
