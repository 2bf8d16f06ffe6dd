"""`--external-data`: the published one-file model.onnx as model.onnx and model.onnx_data. No torch."""

from __future__ import annotations

from pathlib import Path

from edge_pslora.errors import WorkspaceError
from edge_pslora.exporters.onnx_patch import proven
from edge_pslora.exporters.onnx_publish import publish_model
from edge_pslora.exporters.onnx_read import open_model
from edge_pslora.workspace import layout
from edge_pslora.workspace.generation import Generation


def write_external(chosen: Generation, out: Path) -> Path | None:
    """Write `out` and `out`_data with the bytes that an export with external data has.

    What was written is proven to be the published model, by the sha256 that it has as one file. The
    kernel copies the weights, and shares their blocks where the file system can.

    Returns:
        The path of the second file; None: the model has no weight of 1024 bytes or more.

    Raises:
        WorkspaceError: the published file was changed; nothing appears at `out`.
    """
    expected = (chosen.manifest.files[layout.ONNX],)
    with open_model(chosen.path / layout.ONNX, error=WorkspaceError) as file:
        proof = proven(out, file.model, file.weights, expected, WorkspaceError)
        return publish_model(out, file.model, file.weights, external=True, proof=proof)
