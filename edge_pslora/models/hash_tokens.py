"""Token ids without a vocabulary: words, word pairs and letter trigrams, hashed into buckets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

from edge_pslora.models.encode_text import Tokens

_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class HashTokenizer:
    """Ids in 1 .. buckets - 1; 0 is padding. Stable over machines and versions (CRC-32 of UTF-8).

    max_ids: how many are kept of one text. A word gives about six, in the order of the text.
    """

    buckets: int
    max_ids: int

    def __call__(self, texts: Sequence[str]) -> Tokens:
        return Tokens([self.ids(text) for text in texts])

    def ids(self, text: str) -> list[int]:
        """The ids of one text, at most max_ids, possibly none."""
        ids: list[int] = []
        before = ""
        for match in _WORD.finditer(text.lower()):
            word = match.group()
            padded = f"<{word}>"
            grams = [f"w{word}", f"b{before} {word}"]
            grams += [f"c{padded[i : i + 3]}" for i in range(len(padded) - 2)]
            ids += [
                1 + crc32(gram.encode("utf-8", "replace")) % (self.buckets - 1) for gram in grams
            ]
            if len(ids) >= self.max_ids:
                return ids[: self.max_ids]
            before = word
        return ids
