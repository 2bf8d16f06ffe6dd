"""Small networks as torch.export files, and those files with their records changed."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edge_pslora.data.types import Samples
from edge_pslora.models.load import ModelOptions, import_base, load_model
from edge_pslora.models.types import LoadedModel

BATCH = ({0: torch.export.Dim("batch")},)


class Net(nn.Module):
    """One of everything that becomes a layer again, and some that do not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.ReLU(inplace=True)
        self.depth = nn.Conv2d(8, 8, 3, groups=8, padding="same")
        self.place = nn.Parameter(torch.randn(16, 8))
        self.codes = nn.Embedding(4, 8)
        self.drop = nn.Dropout(0.5)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.register_buffer("gain", torch.full((1,), 1.5), persistent=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        codes = self.codes((x.mean((1, 2, 3)) > 0).long())
        x = self.depth(self.act(self.norm(self.stem(x))))
        x = x.flatten(2).transpose(1, 2) + self.place
        x = self.block(self.drop(x)).mean(1) * self.gain + codes
        return self.head(x)


def save(folder: Path, model: nn.Module, *inputs: torch.Tensor, shapes: Any = BATCH) -> Path:
    path = folder / "net.pt2"
    torch.export.save(torch.export.export(model, inputs, dynamic_shapes=shapes), path)
    return path


def new_net() -> nn.Module:
    torch.manual_seed(0)
    model = Net()
    with torch.no_grad():
        model(torch.randn(8, 1, 4, 4))  # statistics of the norm
    return model.eval()


def new_rows() -> Samples:
    x = np.random.default_rng(0).normal(size=(6, 1, 4, 4)).astype(np.float32)
    return Samples("array", "classification", x, np.array(list("ababab")))


def load(path: Path, samples: Samples, base: Path, **options: Any) -> LoadedModel:
    base.mkdir()
    return load_model(import_base(str(path), None, samples, ModelOptions(**options), base), base)


def rewrite(path: Path, change: Callable[[dict[str, bytes]], None], mode: int = 0) -> Path:
    """The file again with its records changed."""
    with zipfile.ZipFile(path) as file:
        records = {name: file.read(name) for name in file.namelist()}
    change(records)
    with zipfile.ZipFile(path, "w", mode) as file:
        for name, content in records.items():
            file.writestr(name, content)
    return path


def edit_json(end: str, change: Callable[[dict[str, Any]], None]) -> Callable[..., None]:
    def edit(records: dict[str, bytes]) -> None:
        name = next(n for n in records if n.endswith(end))
        content = json.loads(records[name])
        change(content)
        records[name] = json.dumps(content).encode()

    return edit
