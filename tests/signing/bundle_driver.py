"""A process to kill: makes the next release of a bundle, has it signed later, rotates a key.

python -m tests.signing.bundle_driver KEYS ROOT [backwards]

For n = 1, 2, ...: fork; the child works on ROOT/n and kills itself just before its n-th changing call of
the os module; what a new device then takes is compared with the release before and the new one. After
some of the kills the work is done again, and what is left looked at. backwards: with a fault, metadata is
written the wrong way round.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tuf.api.exceptions import DownloadError, RepositoryError

from edge_pslora.signing import release
from edge_pslora.signing.keys import load_signers
from edge_pslora.signing.repository import read_repository
from edge_pslora.workspace.lock import folder_lock
from tests.signing.signing_kit import files_of, publish, soon, taken

CHANGING = ("write", "fsync", "rename", "unlink", "mkdir", "rmdir", "open", "copy_file_range")
AGAIN = 16  # after every so many of the kills
OLD = {"bundle.json": b"old", "base/m": b"m" * 100, "gone/x": b"x"}
NEW = {"bundle.json": b"new", "base/m": b"m" * 100, "more/y": b"y" * 10}


def kill_at(number: int | None) -> Callable[[], int]:
    """Ends this process at its n-th changing call; the result counts them."""
    calls = 0

    def guarded(real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return call

    for name in CHANGING:
        setattr(os, name, guarded(getattr(os, name)))
    return lambda: calls


def work(folder: Path, signers: list[Any], removed: str) -> None:
    publish(folder, NEW, signers[:1])
    with folder_lock(folder):
        release.add_signatures(read_repository(folder), signers[1:2])
    with folder_lock(folder):
        found = read_repository(folder)
        if removed in found.root.keys:
            release.rotate(found, remove=[removed], add=(), expires=soon(), signers=signers[:2])


def state(folder: Path, root: bytes) -> str:
    """old, new, or what is wrong."""
    try:
        names = [*OLD, *NEW]
        found = {n: c for n, c in taken(folder, root, names).items() if c is not None}
    except (DownloadError, RepositoryError) as problem:
        return f"{type(problem).__name__}: {problem}"
    return {str(OLD): "old", str(NEW): "new"}.get(str(found), f"a mix: {sorted(found)}")


def backwards() -> None:
    """The timestamp before what it names."""
    real = release.durable.write_bytes
    held: list[tuple[Path, bytes]] = []

    def late(path: Path, data: bytes, **more: Any) -> None:
        if path.name.endswith(("snapshot.json", "targets.json")):
            held.append((path, data))
            return
        real(path, data, **more)
        if path.name == "timestamp.json":
            for place, content in held:
                real(place, content)

    release.durable.write_bytes = late
    release._settle = settle_at_once


def settle_at_once(folder: Path) -> release.Standing:
    place = folder / "metadata"
    data = (place / "next.timestamp.json").read_bytes()
    release.durable.write_bytes(place / "timestamp.json", data)
    return release.standing(read_repository(folder))


def main(keys: str, root: str, *fault: str) -> None:
    place = Path(root)
    place.mkdir()
    signers = load_signers([Path(keys, f"key-{n}.pem") for n in (1, 2, 3)])
    trusted = Path(keys, "root.json").read_bytes()
    removed = signers[2].public_key.keyid
    publish(place / "start", OLD, signers[:2], Path(keys, "root.json"))
    if fault:
        backwards()
    facts: dict[str, Any] = {"calls": 0, "old": 0, "new": 0, "bad": []}
    for n in range(1, 1000):
        folder = Path(shutil.copytree(place / "start", place / str(n)))
        child = os.fork()
        if child == 0:
            kill_at(n)
            if fault:
                publish(folder, NEW, signers[:2])
            else:
                work(folder, signers, removed)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        found = state(folder, trusted)
        facts[found] = facts.get(found, 0) + 1
        if found not in ("old", "new"):
            facts["bad"].append(f"{n}: {found}")
        if not fault and n % AGAIN == 0:
            facts["bad"] += [f"{n}, again: {what}" for what in again(folder, signers, trusted)]
        shutil.rmtree(folder)
        if not os.WIFSIGNALED(status) or (fault and facts["bad"]):
            break
        facts["calls"] = n
    print(json.dumps(facts))


def again(folder: Path, signers: list[Any], root: bytes) -> list[str]:
    """What is wrong after the same work was done again."""
    work(folder, signers, signers[2].public_key.keyid)
    found = read_repository(folder)
    names = files_of(folder)
    expected = 5 + len(NEW)  # two roots, timestamp, snapshot, targets
    wrong = [] if state(folder, root) == "new" else ["not the new release"]
    wrong += [] if len(names) == expected else [f"left over: {sorted(names)}"]
    wrong += [] if found.root.version == 2 and found.draft is None else ["not rotated"]
    return wrong


if __name__ == "__main__":
    main(*sys.argv[1:])
