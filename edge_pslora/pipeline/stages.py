"""The stages of a run: each is announced to the progress and timed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from edge_pslora.progress import Progress


@dataclass
class Stages:
    """seconds: stage -> how long it took, in order; a stage that comes twice adds up."""

    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        self.progress.start(name, None)
        try:
            yield
        finally:
            self.progress.finish()
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start
