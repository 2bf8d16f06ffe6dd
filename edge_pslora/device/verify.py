"""`edge-pslora verify`: everything that `apply` checks of a bundle before it runs it. Changes nothing."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_pslora.device import receive
from edge_pslora.device.receive import Offer
from edge_pslora.signing import trusted
from edge_pslora.signing.sources import open_source
from edge_pslora.workspace import layout
from edge_pslora.workspace.update_state import UpdateState, read_state
from edge_pslora.workspace.workspace import Workspace


@dataclass(frozen=True)
class Checked:
    """A bundle that is whole and signed by enough keys; taken: this device has it already."""

    offer: Offer
    taken: bool

    def to_dict(self) -> dict[str, Any]:
        bundle, verified = self.offer.bundle, self.offer.verified
        return {
            "source": self.offer.where,
            "kind": bundle.kind,
            "counter": bundle.counter,
            "generation": bundle.manifest.number,
            "task": bundle.manifest.task,
            "labels": list(bundle.manifest.labels),
            "device_classes": list(bundle.device_classes),
            "base_digest": bundle.manifest.base_digest,
            "parent_model": None if bundle.parent_model is None else bundle.parent_model.sha256,
            "signed_at": f"{bundle.signed_at:%Y-%m-%dT%H:%M:%SZ}",
            "expires": f"{verified.expires:%Y-%m-%dT%H:%M:%SZ}",
            "root_version": verified.root_version,
            "files": len(bundle.payload),
            "bytes": bundle.bytes,
            "taken": self.taken,
        }


def verify(source: str, root: Path | None, workspace: Path | None) -> Checked:
    """Signatures, versions, expiry, then every byte of the payload.

    Args:
        root: whom to trust; may be left out with a workspace that trusts someone.
        workspace: the device's: its trust, class, counter, base model and generations count too.

    Raises:
        UsageError: neither a root nor a workspace that trusts one.
        BundleError: whatever `apply` would refuse it for.
    """
    folder = None if workspace is None else workspace / layout.UPDATES / layout.TRUSTED
    trust = trusted.load_trust(folder, root)
    state = None if workspace is None else read_state(workspace)
    floor = UpdateState("").clock_floor if state is None else state.clock_floor
    with open_source(source) as opened:
        with tempfile.TemporaryDirectory(prefix="edge-pslora-") as private:
            verified = trusted.verify(opened, trust, Path(private), floor)
        offer = receive.read_offer(opened, verified)
        if state is not None:
            receive.check_class(offer, state.device_class)
            receive.check_counter(offer, state)
        taken = state is not None and offer.bundle.counter == state.counter
        if workspace is not None and not taken:
            here = Workspace.open(workspace) if Workspace.exists(workspace) else None
            receive.check_fit(offer, here)
        for name, entry in sorted(offer.bundle.payload.items()):
            for _ in trusted.stream_target(opened, name, entry):
                pass
    return Checked(offer, taken)
