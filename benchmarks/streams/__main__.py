"""`make bench-streams`: all streams, or those that are named, one after the other."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from benchmarks.streams import (
    activity,
    caltech,
    digits,
    gas,
    heart,
    language,
    pacs,
    parkinsons,
    text,
)
from benchmarks.streams.main import main

# the fast ones first: what is broken shows early
STREAMS = {
    stream.name: stream
    for stream in (
        *(heart.STREAM, gas.STREAM, activity.STREAM, digits.STREAM, language.STREAM),
        *(pacs.STREAM, parkinsons.STREAM, caltech.STREAM, text.STREAM),
    )
}


def run_all(arguments: Sequence[str] | None = None) -> int:
    """Runs each and goes on after a failure; returns 0, or the exit code of the first failure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.streams")
    parser.add_argument("streams", nargs="*", metavar="NAME", help=f"of {', '.join(STREAMS)}")
    parser.add_argument("--limit", metavar="N", help="smoke run, see the help of a stream")
    parser.add_argument("--sessions", metavar="K", help="the first K sessions only")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.streams if name not in STREAMS]
    if unknown:
        parser.error(f"no stream {', '.join(unknown)}; there are {', '.join(STREAMS)}")
    passed = [
        word
        for flag, value in (("--limit", options.limit), ("--sessions", options.sessions))
        if value is not None
        for word in (flag, value)
    ]
    ends: list[tuple[str, int, float]] = []
    for name in options.streams or STREAMS:
        start = time.monotonic()
        print(f"\n== {name}", flush=True)
        ends.append((name, main(STREAMS[name], passed), time.monotonic() - start))
    print()
    for name, code, seconds in ends:
        print(f"{name}: {'done' if code == 0 else f'FAILED, exit code {code}'}, {seconds:.0f} s")
    return next((code for _, code, _ in ends if code), 0)


if __name__ == "__main__":
    sys.exit(run_all())
