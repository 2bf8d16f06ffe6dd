"""Putting a model's file or files in place so that a crash never mixes two. No torch.

One file appears by one rename. With a second file two names have to change, and no system call changes
two: the weights are therefore first put beside the old ones under a name of their own, and the model
that refers to that name replaces the old model. That is the step that counts. Then the weights get
their usual name as well, a model that refers to it replaces the interim one, and the interim name goes.
After each step the model refers to weights that are its own.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path

from edge_pslora.errors import ModelError
from edge_pslora.exporters import onnx_file as layout
from edge_pslora.exporters.onnx_file import Payload, Plan, Segment, Stored
from edge_pslora.exporters.onnx_proto import Model
from edge_pslora.exporters.onnx_read import external_name, is_interim
from edge_pslora.workspace import durable

# a second file under an interim name that was being written when its writer was killed
_BEGUN = re.compile(r"\.(.+)\.[0-9]{1,9}\.[0-9a-f]{8}\.tmp")
Proof = Callable[[Mapping[str, Stored]], None]


def publish_model(
    out: Path,
    model: Model,
    payloads: Mapping[str, Payload],
    *,
    external: bool,
    proof: Proof | None = None,
) -> Path | None:
    """Write `out`, and `out`_data if `external`, durably; what was there is replaced as described above.

    Args:
        model: its initializers named in `payloads` need no data.
        proof: called with the weights as they were written, before anything is replaced; what it
            raises ends the writing, and nothing was changed.

    Returns:
        The path of the second file, or None.
    """
    sizes = {name: payload.nbytes for name, payload in payloads.items()}
    data = out.with_name(external_name(out))

    def planned(name: str | None) -> Plan:
        return layout.plan(model, sizes, name)

    def write(path: Path, segments: tuple[Segment, ...]) -> None:
        _write(path, segments, payloads, sizes, proof)

    if not external or not sizes:
        write(out, planned(None).model)
        return None
    interim = data.with_name(f"{data.name}.{secrets.token_hex(8)}") if out.exists() else data
    first = planned(interim.name)
    write(interim, first.data or ())
    durable.write_bytes(out, _model_bytes(first))
    if interim != data:
        settle(out, interim, planned(data.name))
    return data


def settle(out: Path, interim: Path, usual: Plan) -> None:
    """The steps from `out` referring to `interim` to its referring to the usual name, as `usual` has it."""
    durable.link_file(interim, out.with_name(external_name(out)))
    durable.write_bytes(out, _model_bytes(usual))
    durable.remove_file(interim)


def remove_interim(out: Path, used: Path | None) -> None:
    """Remove what a killed publication left beside `out`; used: the second file that it refers to.

    The kill may have come between the model's rename and the folder's fsync: the model that is seen here
    has to be on the disk before the weights of the one before it go.
    """
    with durable.storage_errors(out.parent, out.name):
        durable.fsync_folder(out.parent)
    for name in (out.name, external_name(out)):
        durable.remove_leftovers(out.parent, name)
    for path in sorted(out.parent.iterdir()):
        begun = _BEGUN.fullmatch(path.name)
        if is_interim(path.name, out) and path != used:
            durable.remove_file(path)
        elif begun and is_interim(begun[1], out):
            durable.remove_leftovers(out.parent, begun[1])


def _model_bytes(planned: Plan) -> bytes:
    (content,) = planned.model
    assert isinstance(content, bytes)
    return content


def _write(
    path: Path,
    segments: tuple[Segment, ...],
    payloads: Mapping[str, Payload],
    sizes: Mapping[str, int],
    proof: Proof | None,
) -> None:
    with durable.new_file(path) as write:
        layout.emit(segments, payloads, write)
        if proof is not None:
            places, _ = layout.offsets(segments, sizes)
            with write.syncing():
                proof(
                    {
                        name: Stored(write.descriptor, offset, sizes[name], path, ModelError)
                        for name, offset in places.items()
                    }
                )
