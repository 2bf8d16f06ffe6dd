"""Adapt a network that lives in your program: no factory to import, no weights file.

    python examples/own_module_from_python.py [FOLDER]

`adapt(model=...)` takes the module itself, or a function that returns one. It works on a copy: the
module that you hand over stays as it is. The workspace keeps the weights and not the code, so every
later call needs the module again, with whatever weights. The last Linear (`head`) is replaced by one
that grows with new classes.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from edge_pslora import AdaptConfig, LoraConfig, adapt, evaluate
from edge_pslora.demo_data import load_digits


class Perceptron(nn.Module):
    """Rows [N, 64] -> features [N, 96] -> scores [N, 5]."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 96), nn.Linear(96, 96)
        self.head = nn.Linear(96, 5)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.second(F.relu(self.first(rows)))))


def pretrain(rows: np.ndarray, labels: np.ndarray) -> nn.Module:
    """Stands for the training that you did elsewhere."""
    torch.manual_seed(0)
    model = Perceptron().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    x, y = torch.from_numpy(rows), torch.from_numpy(labels)
    for _ in range(150):
        batch = torch.randint(len(x), (64,))
        loss = F.cross_entropy(model(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def main(folder: Path) -> None:
    images, labels = load_digits()
    rows = (images.reshape(len(images), -1) / 16).astype(np.float32)
    test = np.arange(len(labels)) % 4 == 0
    known = ~test & (labels < 5)
    model = pretrain(rows[known], labels[known])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    everything = folder / "test.npz"
    np.savez(everything, x=rows[test], y=labels[test])
    config = AdaptConfig(lora=LoraConfig(target_modules=("first", "second")))
    for number, digits in enumerate((range(5), range(5, 10))):
        chosen = ~test & np.isin(labels, digits)
        data = folder / f"{number}.npz"
        np.savez(data, x=rows[chosen], y=labels[chosen])
        # the second session could as well get `model=Perceptron`: its weights are the workspace's
        result = adapt(data, model=model, workspace=folder / "workspace", config=config)
        found = evaluate(folder / "workspace", everything, model=Perceptron)
        print(f"generation {result.generation}: {found.accuracy:.3f} of all ten digits")
    same = all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    print(f"the module is as it was: {same and model.training}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
