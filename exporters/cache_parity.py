"""Does an ONNX file with a key-value cache compute, run by run, what torch computes in one?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edge_pslora.errors import DataError
from edge_pslora.exporters.generate import CachedModel, Ids, open_cached, padded
from edge_pslora.exporters.kv_cache import IDS, MASK
from edge_pslora.exporters.parity import Parity, compare

# Token by token costs a run each: texts are cut here for that, and not where they are computed at once.
LONGEST = 256
_TOGETHER = 2  # texts that are continued side by side
_PADDED = 4  # texts in one batch with padding
_PADDED_STEPS = 8

Logits = npt.NDArray[Any]
Batch = Mapping[str, torch.Tensor]
_Pair = tuple[Logits, Logits]  # expected and found, [tokens, V] each


@dataclass(frozen=True)
class _Text:
    """ids: int64 [T]; logits [T, V]: what torch says behind each of them."""

    ids: Ids
    logits: Logits


def check_cache(
    classifier: nn.Module, path: Path, batches: Sequence[Batch], *, threads: int | None = None
) -> dict[str, Parity]:
    """What was checked -> torch without a cache against onnxruntime with one, at every real token.

    whole texts: each batch at once, from an empty past. token by token: two texts, from two split points
    on. piece by piece: the same in two runs. padded on the left, on the right: texts that are split at
    unlike lengths, and continued behind the padding.

    Args:
        classifier: in eval mode; keyword inputs to logits [N, T, V], without a cache.
        batches: input_ids and attention_mask, padded on the right; use two sizes and lengths.

    Raises:
        ModelError: the file cannot be loaded or run.
        DataError: no text has two tokens.
    """
    model = open_cached(path, threads=threads)
    known = [_texts(classifier, batch) for batch in batches]
    long = sorted(
        (text for texts in known for text in texts if len(text.ids) > 1),
        key=lambda text: len(text.ids),
    )
    if not long:
        raise DataError(
            "the samples to prove the cache with",
            expected="a text of at least two tokens",
            found="shorter ones",
            remedy="give others: --data",
        )
    unlike = [long[i] for i in sorted({0, len(long) // 2, len(long) - 1})]
    unlike = [unlike[i % len(unlike)] for i in range(_PADDED)]
    ids, logits = _cut(long[-_TOGETHER:])
    splits = sorted({1, ids.shape[1] // 2})
    by_token = ([*range(split, ids.shape[1])] for split in splits)
    checks: dict[str, Iterator[_Pair]] = {
        "whole texts": (
            _whole(model, batch, texts) for batch, texts in zip(batches, known, strict=True)
        ),
        "token by token": (_in_pieces(model, ids, logits, cuts) for cuts in by_token),
        "piece by piece": (_in_pieces(model, ids, logits, [split]) for split in splits),
        "padded on the left": _padded(model, unlike, left=True),
        "padded on the right": _padded(model, unlike, left=False),
    }
    return {name: _worst(compare([pair]) for pair in pairs) for name, pairs in checks.items()}


def _texts(classifier: nn.Module, batch: Batch) -> list[_Text]:
    with torch.inference_mode():
        logits = classifier(**batch).numpy()
    lengths = batch[MASK].sum(dim=1).tolist()
    ids = batch[IDS].numpy()
    return [_Text(ids[row, :n], logits[row, :n]) for row, n in enumerate(lengths)]


def _cut(texts: Sequence[_Text]) -> tuple[Ids, Logits]:
    """ids [K, T] and logits [K, T, V], T = the shortest of these texts: what follows changes nothing."""
    length = min(LONGEST, *(len(text.ids) for text in texts))
    ids = np.stack([text.ids[:length] for text in texts])
    return ids, np.stack([text.logits[:length] for text in texts])


def _whole(model: CachedModel, batch: Batch, texts: Sequence[_Text]) -> _Pair:
    mask = batch[MASK].numpy()
    found, _ = model.step(batch[IDS].numpy(), mask, model.empty(len(mask)))
    return np.concatenate([text.logits for text in texts]), found[mask != 0]


def _in_pieces(model: CachedModel, ids: Ids, logits: Logits, cuts: Sequence[int]) -> _Pair:
    """One run for the tokens between each cut and the next."""
    past, found = model.empty(len(ids)), []
    for start, stop in pairwise((0, *cuts, ids.shape[1])):
        mask = np.ones((len(ids), stop), np.int64)
        part, past = model.step(ids[:, start:stop], mask, past)
        found.append(part)
    size = logits.shape[-1]
    return logits.reshape(-1, size), np.concatenate(found, axis=1).reshape(-1, size)


def _padded(model: CachedModel, texts: Sequence[_Text], *, left: bool) -> Iterator[_Pair]:
    """The first run, then one for each token that the texts go on with."""
    share = len(texts) + 1
    lengths = [max(1, len(text.ids) * row // share) for row, text in enumerate(texts, 1)]
    prompts = [text.ids[:n].tolist() for text, n in zip(texts, lengths, strict=True)]
    ids, mask = padded(prompts, left=left)
    logits, past = model.step(ids, mask, model.empty(len(texts)))
    first = [text.logits[:n] for text, n in zip(texts, lengths, strict=True)]
    yield np.concatenate(first), logits[mask != 0]
    for step in range(_PADDED_STEPS):
        places = [n + step for n in lengths]
        going = [row for row, text in enumerate(texts) if places[row] < len(text.ids)]
        if not going:
            return
        ids = np.zeros((len(texts), 1), np.int64)  # a text that is over goes on with anything
        for row in going:
            ids[row] = texts[row].ids[places[row]]
        mask = np.concatenate([mask, np.ones_like(ids)], axis=1)
        logits, past = model.step(ids, mask, past)
        yield np.stack([texts[row].logits[places[row]] for row in going]), logits[going, 0]


def _worst(parts: Iterable[Parity]) -> Parity:
    found = list(parts)
    sizes = [sum(part.batch_sizes) for part in found]
    agreeing = sum(part.agreement * size for part, size in zip(found, sizes, strict=True))
    return Parity(
        max(part.max_abs_error for part in found),
        max(part.max_rel_error for part in found),
        agreeing / sum(sizes),
        tuple(sizes),
    )
