"""Tables and arrays as a model's input: float32, kept as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edge_pslora.data.spool import SPOOL_BYTES, ByteSpool, rows_at_a_time
from edge_pslora.data.types import Samples
from edge_pslora.errors import DataError

INPUT_NAME = "x"


@dataclass(frozen=True)
class EncodedArrays:
    """values: float32 [N, ...], NaN where a value is missing."""

    values: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.values)

    def batch(self, indices: npt.NDArray[np.int64]) -> dict[str, torch.Tensor]:
        return {INPUT_NAME: torch.from_numpy(self.values[indices])}

    def lengths(self) -> npt.NDArray[np.int64]:
        return np.ones(len(self.values), np.int64)

    def to_arrays(self, indices: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]]:
        return {INPUT_NAME: self.values[indices]}


@dataclass(frozen=True)
class ArrayEncoder:
    """sample_shape: of one sample. feature_names: the first data's columns, if they had names.

    Columns that come in another order are put into the first one's.
    """

    sample_shape: tuple[int, ...]
    feature_names: tuple[str, ...] = ()

    @property
    def input_names(self) -> tuple[str, ...]:
        return (INPUT_NAME,)

    def encode(self, samples: Samples) -> EncodedArrays:
        """Raises DataError: another kind of data, another shape or other columns."""
        if samples.modality not in ("table", "array") or not isinstance(samples.inputs, np.ndarray):
            raise DataError(
                "DATA",
                expected="a table or array, as in the first session",
                found=f"{samples.modality} data",
                remedy="use a new --workspace for another kind of data",
            )
        values = np.ascontiguousarray(samples.inputs, dtype=np.float32)
        if self.feature_names and samples.feature_names:
            values = self._in_order(values, samples.feature_names)
        if values.shape[1:] != self.sample_shape:
            raise DataError(
                "DATA",
                expected=f"samples of shape {list(self.sample_shape)}",
                found=f"{list(values.shape[1:])}",
                remedy="give the columns or shape of the first session",
            )
        return EncodedArrays(values)

    def from_arrays(self, arrays: dict[str, npt.NDArray[Any]]) -> EncodedArrays:
        return EncodedArrays(np.asarray(arrays[INPUT_NAME], np.float32))

    def _in_order(
        self, values: npt.NDArray[np.float32], names: tuple[str, ...]
    ) -> npt.NDArray[np.float32]:
        if names == self.feature_names:
            return values
        missing = [name for name in self.feature_names if name not in names]
        extra = [name for name in names if name not in self.feature_names]
        if missing or extra:
            wrong = f"no column {missing[0]!r}" if missing else f"an extra column {extra[0]!r}"
            raise DataError(
                "DATA",
                expected=f"the {len(self.feature_names)} columns of the first session",
                found=wrong,
                remedy="give the same columns, in any order",
            )
        order = [names.index(name) for name in self.feature_names]
        # the last axis: of a table its columns, of recordings their channels
        if values.nbytes > SPOOL_BYTES:
            spool, step = ByteSpool(), rows_at_a_time(values)
            for start in range(0, len(values), step):
                spool.write(
                    np.ascontiguousarray(values[start : start + step][..., order]).tobytes()
                )
            return spool.array(np.float32).reshape(values.shape)
        return np.ascontiguousarray(values[..., order])
