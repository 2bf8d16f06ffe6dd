"""Activations at the cut, one row a sample: computed once a session, read in every later pass.

The features before training come by anyway: their pass keeps the rows. What no such pass has seen (a
linear head has none) `fill` computes, up to the cut. Rows that cannot be kept or read cost time, never
the result: from then on the full model computes, and `note` says so.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from edge_pslora.models.types import Backbone, EncodedInputs
from edge_pslora.training.batches import sorted_batches
from edge_pslora.training.plan import UsedPrefix
from edge_pslora.training.prefix_cut import Cut, padded
from edge_pslora.training.prefix_rows import decode, encode, row_bytes
from edge_pslora.training.stand_ins import answering, the_tensor

Indices = npt.NDArray[np.int64]


class RowStore(Protocol):
    """Bytes by offset. `finished`: the tag that `finish` was given for just this content, or None.

    All raise OSError where the disk does.
    """

    def finished(self) -> str | None: ...

    def write(self, offset: int, data: bytes) -> None: ...

    def read(self, offset: int, size: int) -> bytes: ...

    def finish(self, tag: str) -> None: ...


class _ReachedError(BaseException):
    """The cut is reached and its rows are kept; BaseException: no model's own `except` may take it."""


class PrefixCache:
    """rows: float32 at the cut, of samples 0..N-1 with these lengths, in the given form.

    A checksum for each row, in a table behind the rows, is compared at every reading.
    """

    def __init__(
        self, cut: Cut, lengths: npt.NDArray[np.int64], form: UsedPrefix, store: RowStore
    ) -> None:
        self.cut, self.form, self.note = cut, form, ""
        self._lengths, self._store = lengths, store
        sizes = [row_bytes(form, self._shape(i)) for i in range(len(lengths))]
        self._offsets = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self._sums = np.zeros(len(lengths), np.uint32)
        self._kept = np.zeros(len(lengths), bool)
        self._usable = True
        self._finished = self._resume()

    @property
    def exact(self) -> bool:
        """Whether what follows the cut computes what it would in a full pass."""
        return self._usable and self.form == "exact"

    @property
    def complete(self) -> bool:
        return self._usable and bool(self._kept.all())

    def fill(
        self, backbone: Backbone, inputs: EncodedInputs, batch_size: int, on: Callable[[int], None]
    ) -> None:
        """Computes the rows that are not kept yet, up to the cut and no further."""
        missing = np.flatnonzero(~self._kept)
        for part in sorted_batches(self._lengths[missing], batch_size):
            if not self._usable:
                return
            samples = missing[part]
            try:
                with torch.no_grad(), self._keeping(backbone, samples, stop=True):
                    backbone(**inputs.batch(samples))
            except _ReachedError:
                pass
            on(len(samples))
        self._finish()

    @contextmanager
    def during(self, backbone: Backbone, samples: Indices) -> Iterator[None]:
        """One forward pass over these samples, which starts at the cut if their rows are kept; otherwise
        it keeps them."""
        if not self._usable:
            yield
        elif not self._kept[samples].all():
            with self._keeping(backbone, samples):
                yield
            self._finish()
        elif (rows := self._rows(samples)) is None:
            yield
        else:
            lengths = self._lengths[samples]
            batch = padded(rows, lengths, self.cut.boundary.axes)
            if batch.dtype == torch.bfloat16 and not torch.is_autocast_enabled("cpu"):
                batch = batch.float()
            with answering(backbone.model, self.cut.answers(batch, int(lengths.max()))):
                yield

    @contextmanager
    def reading(self, backbone: Backbone, samples: Indices) -> Iterator[None]:
        """`during` that keeps nothing: the weights above the cut may be others, or bf16."""
        if self._usable and self._kept[samples].all():
            with self.during(backbone, samples):
                yield
        else:
            yield

    def _shape(self, sample: int) -> list[int]:
        length = int(self._lengths[sample])
        return [axis.size(1, length) for axis in self.cut.boundary.axes[1:]]

    @contextmanager
    def _keeping(self, backbone: Backbone, samples: Indices, stop: bool = False) -> Iterator[None]:
        def keep(forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            output = forward(*args, **kwargs)
            self._keep(samples, output)
            if stop:
                raise _ReachedError
            return output

        with answering(backbone.model, {self.cut.boundary.call: keep}):
            yield

    def _keep(self, samples: Indices, output: Any) -> None:
        batch = the_tensor(output)
        longest = int(self._lengths[samples].max())
        expected = [axis.size(len(samples), longest) for axis in self.cut.boundary.axes]
        if batch is None or list(batch.shape) != expected or batch.dtype != torch.float32:
            self._give_up("a batch had another form than those that were tried")
            return
        for sample, row in zip(samples.tolist(), batch, strict=True):
            real = tuple(slice(size) for size in self._shape(sample))
            data = encode(self.form, row[real])
            try:
                self._store.write(int(self._offsets[sample]), data)
            except OSError as problem:
                self._give_up(problem.strerror or str(problem))
                return
            self._sums[sample] = zlib.crc32(data)
            self._kept[sample] = True

    def _rows(self, samples: Indices) -> list[torch.Tensor] | None:
        rows = []
        for sample in samples.tolist():
            start, end = (int(x) for x in self._offsets[sample : sample + 2])
            try:
                data = self._store.read(start, end - start)
            except OSError as problem:
                self._give_up(problem.strerror or str(problem))
                return None
            if len(data) != end - start or zlib.crc32(data) != self._sums[sample]:
                self._give_up("a row is not what was written")
                return None
            rows.append(decode(self.form, data, self._shape(sample)))
        return rows

    def _finish(self) -> None:
        if self._finished or not self.complete:
            return
        table = self._sums.tobytes()
        try:
            self._store.write(int(self._offsets[-1]), table)
            self._store.finish(hashlib.sha256(table).hexdigest())
            self._finished = True
        except OSError as problem:
            self._give_up(problem.strerror or str(problem))

    def _resume(self) -> bool:
        """Whether a killed run left all rows; if they cannot be read, they are computed again."""
        tag = self._store.finished()
        if tag is None:
            return False
        try:
            table = self._store.read(int(self._offsets[-1]), self._sums.nbytes)
        except OSError:
            return False
        if hashlib.sha256(table).hexdigest() != tag:
            return False
        self._sums = np.frombuffer(table, np.uint32).copy()
        self._kept[:] = True
        return True

    def _give_up(self, why: str) -> None:
        self._usable = False
        self.note = (
            f"the prefix cache was given up ({why}): the full model was computed from there on"
        )


def cache_bytes(cut: Cut, lengths: Sequence[int] | npt.NDArray[np.int64], form: UsedPrefix) -> int:
    """Size on disk of the rows of samples with these lengths, checksums included."""
    axes = cut.boundary.axes[1:]
    distinct, counts = np.unique(np.asarray(lengths), return_counts=True)
    sizes = [row_bytes(form, [axis.size(1, int(n)) for axis in axes]) for n in distinct]
    return sum(s * int(c) for s, c in zip(sizes, counts, strict=True)) + 4 * len(lengths)
