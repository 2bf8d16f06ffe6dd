"""Sessions at ten budgets of memory in one process of its own, which goes on with a workspace.

Prints one JSON object: the least that a refusal names, and for each budget what was used, planned and
promoted.
"""

from __future__ import annotations

import gc
import json
import re
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

import edge_pslora
from edge_pslora import AdaptConfig, BudgetConfig
from edge_pslora.config import GateConfig, LoraConfig, TrainConfig
from edge_pslora.data.options import ReadOptions
from edge_pslora.errors import BudgetError
from edge_pslora.pipeline.resources import peak_rss_bytes

AMPLE = 400 << 20  # more than the least: the steps' activations take less


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


class Pictures(nn.Module):
    """[N, 3, 96, 96] -> [N, 16]: few weights, and activations of megabytes a sample."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            self.blocks = nn.Sequential(*(_block(3 if n == 0 else 16) for n in range(3)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.blocks(x).mean((2, 3))
        return features


def _block(channels: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU())


def begin(folder: Path) -> None:
    """The data and the first session: in the process of the tests, which has the exporter loaded."""
    rng = np.random.default_rng(0)
    y = np.arange(32) % 2
    x = rng.normal(size=(32, 3, 96, 96)) + y[:, None, None, None]
    np.savez(folder / "d.npz", x=x.astype(np.float32), y=y)
    session(folder, None)


def session(folder: Path, budget: int | None) -> edge_pslora.AdaptResult:
    config = AdaptConfig(
        lora=LoraConfig(rank=2),
        train=TrainConfig(epochs=1),
        budget=BudgetConfig(ram_bytes=budget),
        gate=GateConfig(force=True),
    )
    model = Pictures()
    again = ReadOptions(keep_duplicates=True)
    return edge_pslora.adapt(
        folder / "d.npz", model=model, workspace=folder / "w", config=config, read=again
    )


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    # libraries are there from here on, as on a device that goes on learning
    session(folder, None)
    gc.freeze()  # they stay, and need not be looked at by the collections of each session
    least = 0
    try:
        session(folder, 1)
    except BudgetError as problem:
        least = int(re.findall(r"at least (\d+)", str(problem))[0])
    runs = []
    for step in range(10):
        budget = least + AMPLE * step // 9
        forget_peak()
        result = session(folder, budget).to_dict()
        runs.append(
            {"budget": budget, "peak": peak_rss_bytes()}
            | {name: result["plan"][name] for name in ("micro_batch", "peak_bytes")}
        )
    print(json.dumps({"least": least, "runs": runs}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
