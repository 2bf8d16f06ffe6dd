"""Strict JSON: no repeated keys, no NaN, no lone surrogates; canonical bytes out."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from edge_pslora.errors import EdgePsloraError, InputError, WorkspaceError
from edge_pslora.workspace.reading import read_limited


def canonical(value: Any) -> bytes:
    """The one byte string for `value`: sorted keys, no spaces, ASCII, a final newline."""
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as problem:
        raise EdgePsloraError(
            "JSON",
            expected="plain, finite values",
            found=str(problem),
            remedy="convert the value before it is stored",
        ) from problem
    return text.encode("ascii") + b"\n"


def parse(data: bytes, where: str, *, error: type[InputError] = WorkspaceError) -> dict[str, Any]:
    """The JSON object in `data` (UTF-8); anything else is an `error`."""
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # refuses lone surrogates
    except (ValueError, RecursionError) as problem:
        raise error(
            where,
            expected="strict JSON",
            found=str(problem) or type(problem).__name__,
            remedy="the file is damaged or was edited by hand; restore it",
        ) from problem
    if not isinstance(value, dict):
        raise error(
            where,
            expected="a JSON object",
            found=type(value).__name__,
            remedy="the file is damaged or was edited by hand; restore it",
        )
    return value


def read(
    path: Path, *, limit: int = 1 << 20, error: type[InputError] = WorkspaceError
) -> dict[str, Any]:
    """The JSON object in the file at `path`, at most `limit` bytes long."""
    return parse(read_limited(path, limit, error=error), str(path), error=error)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        # one pass: a megabyte of keys must not take minutes
        repeated = next(name for name, count in Counter(n for n, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {ascii(repeated)[:80]} is repeated")
    return result


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large")
    return value
