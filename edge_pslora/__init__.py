"""A device keeps learning from its own data and does not forget: the public Python API.

    from edge_pslora import adapt, evaluate

    result = adapt("monday.csv", model="auto", workspace="device")
    print(result.promoted, evaluate("device", "test.csv").accuracy)

Names are loaded when they are first used, so that `import edge_pslora` costs nothing and a device
that only merges files, or looks at a workspace, needs no torch.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from edge_pslora.version import VERSION

# onnxruntime 1.32 and later report every session to their makers over the network, and keep a file in
# the home folder. It reads this when it is loaded, which is after every module of this package.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

if TYPE_CHECKING:
    from edge_pslora.config import (
        AdaptConfig,
        BudgetConfig,
        EligibilityConfig,
        EngineConfig,
        GateConfig,
        HeadConfig,
        LoraConfig,
        StabilityConfig,
        TrainConfig,
        default_preset,
        paper_preset,
        sequential_preset,
    )
    from edge_pslora.core.drift import DriftDetector
    from edge_pslora.errors import EdgePsloraError
    from edge_pslora.evaluation import evaluate
    from edge_pslora.merge_files import merge
    from edge_pslora.pipeline import AdaptResult, adapt
    from edge_pslora.workspace.workspace import Workspace

__version__ = VERSION

__all__ = [
    "AdaptConfig",
    "AdaptResult",
    "BudgetConfig",
    "DriftDetector",
    "EdgePsloraError",
    "EligibilityConfig",
    "EngineConfig",
    "GateConfig",
    "HeadConfig",
    "LoraConfig",
    "StabilityConfig",
    "TrainConfig",
    "Workspace",
    "__version__",
    "adapt",
    "default_preset",
    "evaluate",
    "merge",
    "paper_preset",
    "sequential_preset",
]

_CONFIG = "edge_pslora.config"
_HOMES = {
    "AdaptConfig": _CONFIG,
    "AdaptResult": "edge_pslora.pipeline",
    "BudgetConfig": _CONFIG,
    "DriftDetector": "edge_pslora.core.drift",
    "EdgePsloraError": "edge_pslora.errors",
    "EligibilityConfig": _CONFIG,
    "EngineConfig": _CONFIG,
    "GateConfig": _CONFIG,
    "HeadConfig": _CONFIG,
    "LoraConfig": _CONFIG,
    "StabilityConfig": _CONFIG,
    "TrainConfig": _CONFIG,
    "Workspace": "edge_pslora.workspace.workspace",
    "adapt": "edge_pslora.pipeline",
    "default_preset": _CONFIG,
    "evaluate": "edge_pslora.evaluation",
    "merge": "edge_pslora.merge_files",
    "paper_preset": _CONFIG,
    "sequential_preset": _CONFIG,
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
