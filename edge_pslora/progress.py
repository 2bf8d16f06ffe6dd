"""How the pipeline tells whoever listens what it is doing. No terminal code here, and no torch."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives one stage after the other; every `start` is followed by one `finish`."""

    def start(self, stage: str, total: int | None) -> None:
        """A stage begins. total: how many units it has, None when nobody knows."""
        ...

    def advance(self, n: int, note: str = "") -> None:
        """n more units are done. note: a few words on the state, such as the loss."""
        ...

    def finish(self) -> None:
        """The stage is over, whether or not all its units were done."""
        ...

    def say(self, line: str) -> None:
        """What a person should know before it goes on, between two stages."""
        ...


class SilentProgress:
    """Says nothing."""

    def start(self, stage: str, total: int | None) -> None:
        return

    def advance(self, n: int, note: str = "") -> None:
        return

    def finish(self) -> None:
        return

    def say(self, line: str) -> None:
        return
