"""What `adapt` answers: the object that `--json` prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_pslora.workspace import layout

# names of the files that users look for, in the order in which they are shown
SHOWN_FILES = (layout.MODEL, layout.ONNX, layout.ONNX_DATA, layout.REPORT, layout.ADAPTER)


@dataclass(frozen=True)
class AdaptResult:
    """One session's outcome. metrics: JSON values, as kept in the manifest; see `to_dict`."""

    generation: int
    promoted: bool
    reason: str
    folder: Path
    metrics: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """generation, promoted, reason, files (name -> path) and all metrics."""
        files = {n: str(self.folder / n) for n in SHOWN_FILES if (self.folder / n).exists()}
        return {
            "generation": self.generation,
            "promoted": self.promoted,
            "reason": self.reason,
            **self.metrics,
            "files": files,
        }
