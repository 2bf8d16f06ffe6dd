"""Greedy continuation of tokens by an exported language model, with its key-value cache where it has one.

onnxruntime and numpy alone: this module needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from edge_pslora.errors import ModelError, UsageError
from edge_pslora.exporters.kv_cache import (
    CACHE_KEY,
    IDS,
    LOGITS,
    MASK,
    POSITIONS,
    KvCache,
    cache_of,
)
from edge_pslora.exporters.run import OnnxRunner, open_onnx

Ids = npt.NDArray[np.int64]
Past = tuple[Any, ...]  # as onnxruntime holds them: what is fed back is not copied
Texts = Sequence[Sequence[int]]
_Next = Callable[[Texts], npt.NDArray[Any]]


@dataclass(frozen=True)
class CachedModel:
    """A file with a key-value cache, open."""

    runner: OnnxRunner
    cache: KvCache

    def empty(self, batch: int) -> Past:
        """The past before the first token."""
        cache = self.cache
        nothing = np.zeros((batch, cache.heads, 0, cache.head_dim), np.float32)
        return tuple(onnxruntime.OrtValue.ortvalue_from_numpy(nothing) for _ in cache.past_names)

    def step(self, ids: Ids, mask: Ids, past: Past) -> tuple[npt.NDArray[Any], Past]:
        """Logits [N, S, V] of the tokens ids [N, S] behind P earlier ones, and the past with them.

        mask: [N, P + S], 0 where there is padding, on whichever side. Positions count what is not padding.

        Raises:
            ModelError: shapes that the file refuses.
        """
        feed: dict[str, Any] = {IDS: ids, MASK: mask}
        if POSITIONS in self.runner.input_types:
            feed[POSITIONS] = (mask.cumsum(axis=1) - 1).clip(min=0)[:, -ids.shape[1] :]
        values = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array, np.int64))
            for name, array in feed.items()
        }
        values |= dict(zip(self.cache.past_names, past, strict=True))
        logits, *present = self.runner.run_values((LOGITS, *self.cache.present_names), values)
        return logits.numpy(), tuple(present)


def open_cached(path: Path, *, threads: int | None = None) -> CachedModel:
    """Load a file that was exported with --kv-cache.

    Raises:
        ModelError: the file is missing or damaged, or has no cache.
    """
    return with_cache(open_onnx(path, threads=threads))


def with_cache(runner: OnnxRunner) -> CachedModel:
    """The open file as a model with a cache. Raises ModelError: it has none."""
    cache = cache_of(runner.metadata, str(runner.path))
    inputs = set(runner.input_types) - {IDS, MASK, POSITIONS}
    if 2 * cache.layers != len(inputs) or inputs != set(cache.past_names):
        raise ModelError(
            str(runner.path),
            expected=f"keys and values of {cache.layers} layers as inputs, as {CACHE_KEY} says",
            found=", ".join(sorted(inputs)) or "none",
            remedy="export it again",
        )
    return CachedModel(runner, cache)


def generate(
    runner: OnnxRunner, prompts: Texts, count: int, end: int | None = None
) -> list[list[int]]:
    """Up to `count` tokens behind each prompt, always the likeliest; a text is over behind `end`.

    Without a cache every step computes the whole text again.

    Raises:
        UsageError: no prompts, or an empty one.
        ModelError: another file than of a language model, or tokens that it does not know.
    """
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise UsageError(
            "generate",
            expected="prompts of at least one token",
            found="an empty one" if prompts else "none",
            remedy="begin with the tokenizer's first token",
        )
    cached = CACHE_KEY in runner.metadata
    following = _with_cache(runner) if cached else _without_cache(runner)
    texts = [[int(token) for token in prompt] for prompt in prompts]
    for _ in range(count):
        chosen = following(texts).argmax(axis=1)
        for text, token in zip(texts, chosen, strict=True):
            text.append(int(token))
        new = [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)]
        if end is not None and all(end in tokens for tokens in new):
            break
    return [_until(text[len(prompt) :], end) for text, prompt in zip(texts, prompts, strict=True)]


def padded(texts: Texts, *, left: bool) -> tuple[Ids, Ids]:
    """ids and mask, both [N, longest]; the padding is masked, so that its token does not matter."""
    longest = max(len(text) for text in texts)
    ids = np.zeros((len(texts), longest), np.int64)
    mask = np.zeros_like(ids)
    for row, text in enumerate(texts):
        place = slice(longest - len(text), None) if left else slice(len(text))
        ids[row, place] = text
        mask[row, place] = 1
    return ids, mask


def _with_cache(runner: OnnxRunner) -> _Next:
    model = with_cache(runner)
    past: Past = ()
    mask = np.zeros((0, 0), np.int64)

    def following(texts: Texts) -> npt.NDArray[Any]:
        nonlocal past, mask
        if past:
            ids = np.array([text[-1:] for text in texts], np.int64)
            mask = np.concatenate([mask, np.ones_like(ids)], axis=1)
        else:
            # on the left, so that the last token of every text stands at the end
            ids, mask = padded(texts, left=True)
            past = model.empty(len(texts))
        logits, past = model.step(ids, mask, past)
        return logits[:, -1]

    return following


def _without_cache(runner: OnnxRunner) -> _Next:
    def following(texts: Texts) -> npt.NDArray[Any]:
        # on the right: a file without position_ids counts from the first column
        ids, mask = padded(texts, left=False)
        logits = runner.run({IDS: ids, MASK: mask})
        return np.stack([logits[row, len(text) - 1] for row, text in enumerate(texts)])

    return following


def _until(tokens: list[int], end: int | None) -> list[int]:
    return tokens[: tokens.index(end) + 1] if end in tokens and end is not None else tokens
