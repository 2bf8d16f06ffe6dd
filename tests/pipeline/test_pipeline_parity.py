"""How far a file may be from torch before the session fails."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from torch import nn

from edge_pslora.config import GateConfig
from edge_pslora.errors import EdgePsloraError
from edge_pslora.exporters.parity import Parity
from edge_pslora.pipeline import judging
from edge_pslora.tasks import TASKS
from tests.tiny import ArrayInputs


@pytest.mark.parametrize(
    ("absolute", "relative", "passes"),
    [
        (9e-5, 9e-5, True),  # small outputs: the absolute limit counts
        (5e-4, 4e-6, True),  # logits of a hundred: float32 has no more digits
        (5e-4, 2e-5, False),
        (float("inf"), float("inf"), False),
        (float("nan"), float("nan"), False),
    ],
)
def test_the_limit_grows_with_the_outputs(monkeypatch, absolute, relative, passes):
    found = Parity(absolute, relative, 1.0, (1, 7))
    monkeypatch.setattr(judging, "check_parity", lambda *args, **more: found)
    inputs = ArrayInputs(np.zeros((9, 2), np.float32))
    arguments = (nn.Identity(), Path("m.onnx"), inputs, GateConfig(), TASKS["classification"])
    if passes:
        assert judging.prove_export(*arguments) is found
        return
    with pytest.raises(EdgePsloraError, match=r"m.onnx: expected outputs equal to torch's"):
        judging.prove_export(*arguments)
