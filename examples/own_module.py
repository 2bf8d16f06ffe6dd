"""Adapt a network of your own: any nn.Module that a function without arguments builds.

    python examples/own_module.py [FOLDER]

The same from the command line, with this repository as the working directory:

    edge-pslora adapt digits.npz --model examples.own_module:build --weights own.safetensors

`build` gives the network with random weights; `--weights` is a safetensors file with the trained ones.
The last Linear has a usual name (`classifier`) and is replaced by the head that grows with new
classes. Weights are never pickled, and the module's file is imported, not copied: keep it importable.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import nn
from torch.nn import functional as F

from edge_pslora import AdaptConfig, LoraConfig, adapt, evaluate
from edge_pslora.demo_data import load_digits


class SmallNet(nn.Module):
    """Pictures [N, 1, 8, 8] -> features [N, 64] -> scores [N, 5]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 64, 3, stride=2, padding=1)
        self.norm2 = nn.BatchNorm2d(64)
        self.project = nn.Linear(64 * 4, 64)
        self.classifier = nn.Linear(64, 5)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm1(self.conv1(pictures)))
        x = F.relu(self.norm2(self.conv2(x)))
        x = F.max_pool2d(x, 2).flatten(1)
        return self.classifier(F.relu(self.project(x)))


def build() -> nn.Module:
    """The factory that `--model examples.own_module:build` calls."""
    return SmallNet()


def pretrain(pictures: np.ndarray, labels: np.ndarray) -> nn.Module:
    """Stands for the training that you did elsewhere."""
    torch.manual_seed(0)
    model = build().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    x, y = torch.from_numpy(pictures), torch.from_numpy(labels)
    for _ in range(60):
        batch = torch.randint(len(x), (64,))
        loss = F.cross_entropy(model(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def main(folder: Path) -> None:
    images, labels = load_digits()
    pictures = (images[:, None] / 16).astype(np.float32)
    test = np.arange(len(labels)) % 4 == 0
    known = ~test & (labels < 5)
    weights = folder / "own.safetensors"
    weights.write_bytes(save(pretrain(pictures[known], labels[known]).state_dict()))

    everything = folder / "test.npz"
    np.savez(everything, x=pictures[test], y=labels[test])
    config = AdaptConfig(lora=LoraConfig(target_modules=("conv2", "project")))
    for number, digits in enumerate((range(5), range(5, 10))):
        chosen = ~test & np.isin(labels, digits)
        data = folder / f"{number}.npz"
        np.savez(data, x=pictures[chosen], y=labels[chosen])
        result = adapt(
            data,
            model="examples.own_module:build" if number == 0 else None,
            weights=weights if number == 0 else None,
            workspace=folder / "workspace",
            config=config,
        )
        found = evaluate(folder / "workspace", everything)
        never = f", never learned: {' '.join(found.unknown_labels)}" if found.unknown_labels else ""
        print(f"generation {result.generation}: {found.accuracy:.3f} of all ten digits{never}")
    for note in result.metrics["notes"]:
        print("note:", note)


if __name__ == "__main__":
    # the command line has the working directory on its path; a script has its own folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
