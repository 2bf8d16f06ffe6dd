"""Signed updates as scenes: taken whole, as a delta, on trial, and back after three failed checks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.torture.kill_scenes import Materials, Scene

_KEYS = ("--key", "keys/key-1.pem", "--key", "keys/key-2.pem", "--root", "keys/root.json")
# started without a shell by name: both are everywhere
_HEALTHY, _ILL = "true", "false"


def make(run: Callable[..., None]) -> None:
    """Keys, bundles of both generations, and a device that took the first. No torch is needed.

    run: runs a command line in the folder of the materials, which holds the workspace `w`.
    """
    run("keys", "init", "keys")
    first = ("--generation", "1", "--counter", "1", "--kind", "full", "--with-base")
    run("bundle", "w", "bundle-1", *_KEYS, *first)
    for kind in ("full", "delta"):
        run("bundle", "w", f"bundle-{kind}", *_KEYS, "--kind", kind, "--counter", "2")
    run("apply", "device", "--from", "bundle-1", "--root", "keys/root.json", "--no-check")


def apply_scenes(made: Materials) -> list[Scene]:
    def scene(name: str, bundle: str, *argv: str, code: int = 0, **more: Any) -> Scene:
        parts = {"bundle": f"bundle-{bundle}", "root.json": "keys/root.json"}
        if bundle != "1":
            parts["w"] = "device"
        start: Path = made.start(name, parts)
        command = ("apply", "w", "--from", "bundle", *argv, "--json")
        return Scene(name, start, command, code, **more)

    at_once = ("--health-interval", "0s")
    return [
        scene("apply, new device", "1", "--root", "root.json", "--no-check"),
        scene("apply, full", "full", "--no-check"),
        scene("apply, delta", "delta", "--no-check"),
        # a third try that is killed in its health check is the third failure: it goes back
        scene("apply, trial", "full", "--health-check", _HEALTHY, *at_once, most_kills=2),
        scene("apply, back", "delta", "--health-check", _ILL, *at_once, code=3, between=(2,)),
    ]
