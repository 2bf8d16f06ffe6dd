"""How torch's threads wait for each other: for microseconds awake, then asleep."""

from __future__ import annotations

from collections.abc import MutableMapping

# Turns of libgomp's waiting loop, some ten microseconds. Its own 300,000 are milliseconds: on a machine
# with other work they go to a thread that waits for one that cannot run (docs/ENGINE.md).
SPINS = "1000"
_CHOSEN = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def wait_asleep(environ: MutableMapping[str, str]) -> None:
    """Has an effect before torch is imported, and no other than on time; what the user chose stays."""
    if not any(name in environ for name in _CHOSEN):
        environ["GOMP_SPINCOUNT"] = SPINS
