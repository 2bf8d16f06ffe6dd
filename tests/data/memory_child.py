"""Reads one data file and prints how much anonymous memory that took at most, in bytes, and the rows.

Run as: memory_child.py FILE SPOOL_BYTES [windows]. Mapped files do not count: the system takes them
back at will.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path


def anonymous() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no RssAnon in /proc/self/status")


def main() -> None:
    from edge_pslora.data import spool
    from edge_pslora.data.duplicates import without_duplicates
    from edge_pslora.data.read import ReadOptions, read_dataset
    from edge_pslora.data.split import split

    spool.SPOOL_BYTES = int(sys.argv[2])
    options = ReadOptions(window_seconds=1, rate_hz=50) if sys.argv[3:] else ReadOptions()
    peak, done = [anonymous()], threading.Event()

    def watch() -> None:
        while not done.is_set():
            peak[0] = max(peak[0], anonymous())
            time.sleep(0.002)

    before = peak[0]
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    dataset = without_duplicates(read_dataset(Path(sys.argv[1]), options))
    train, held = split(dataset.train, 0.1, 0)
    done.set()
    watcher.join()
    print(max(peak[0], anonymous()) - before, len(train) + len(held))


if __name__ == "__main__":
    main()
