"""For research: sessions in memory, without a workspace; the merge rules side by side.

    python examples/compare_merge_rules.py [--epochs N]

One base network is fitted to the bundled digits 0 to 3. From there, each rule goes through the same
four sessions (digits 0 to 3, 4 to 6, 7 to 9, then all of them white on black) on the same data and
seed, once with a head trained by SGD and once with the analytic head. The table shows test accuracy
averaged over the four sessions at the end, and how much of it was forgotten since each was learned.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edge_pslora import AdaptConfig, HeadConfig, StabilityConfig, TrainConfig
from edge_pslora.config import MERGE_RULES
from edge_pslora.data.types import Samples
from edge_pslora.demo_data import load_digits
from edge_pslora.models.load import import_base, load_model
from edge_pslora.models.options import ModelOptions
from edge_pslora.models.types import LoadedModel, ModelSource
from edge_pslora.pipeline.memory_files import open_base
from edge_pslora.training.features import extract_features
from edge_pslora.training.memory import Memory, first_memory
from edge_pslora.training.session import SessionData, run_session
from edge_pslora.training.targets import find_targets

SESSIONS = (((0, 1, 2, 3), False), ((4, 5, 6), False), ((7, 8, 9), False), (range(10), True))
HEADS = {
    "SGD head": HeadConfig(kind="linear", transport=False),
    "analytic head": HeadConfig(kind="analytic"),
}
CONFIG = AdaptConfig(train=TrainConfig(learning_rate=3e-3, epochs=3))


@dataclass(frozen=True)
class Row:
    """learned: accuracy just after each session; final: after the last one."""

    learned: tuple[float, ...]
    final: tuple[float, ...]

    @property
    def average(self) -> float:
        return float(np.mean(self.final))

    @property
    def forgotten(self) -> float:
        pairs = list(zip(self.learned, self.final, strict=True))[:-1]
        return float(np.mean([then - now for then, now in pairs]))


def sessions(test: bool) -> list[Samples]:
    """Half of the bundled digits to learn, a quarter to test."""
    images, labels = load_digits()
    used = np.arange(len(labels)) % 4 == 0 if test else np.arange(len(labels)) % 2 == 1
    parts = []
    for digits, inverted in SESSIONS:
        rows = np.flatnonzero(used & np.isin(labels, digits))
        ink = images[rows].reshape(len(rows), -1).astype(np.float32) / 16
        names = labels[rows].astype(np.str_)
        parts.append(Samples("array", "classification", 1 - ink if inverted else ink, names))
    return parts


def accuracy(model: LoadedModel, memory: Memory, samples: Samples) -> float:
    features = extract_features(model.backbone, model.encoder.encode(samples), 256)
    scores = (features @ memory.head.weight.T + memory.head.bias).numpy()
    # labels of later sessions do not exist yet and count as wrong
    return float(np.mean(np.array(memory.head.labels)[scores.argmax(1)] == samples.targets))


def run(source: ModelSource, base: Path, config: AdaptConfig) -> Row:
    """All sessions under one configuration."""
    model = load_model(source, base)
    train, test = sessions(test=False), sessions(test=True)
    targets = find_targets(model.backbone.model, config.lora.target_modules)
    memory = first_memory(model, targets, config, "classification")
    learned = []
    with open_base(base, model) as base_weights:
        for samples, held_out in zip(train, test, strict=True):
            data = SessionData(model.encoder.encode(samples), samples.targets)
            memory = run_session(model, base_weights, memory, data, config).memory
            learned.append(accuracy(model, memory, held_out))
    return Row(tuple(learned), tuple(accuracy(model, memory, samples) for samples in test))


def main() -> None:
    parser = argparse.ArgumentParser(description="The merge rules side by side.")
    parser.add_argument("--epochs", type=int, default=CONFIG.train.epochs, help="of each session")
    train = replace(CONFIG.train, epochs=parser.parse_args().epochs)
    methods = {rule: replace(CONFIG, train=train, merge=rule) for rule in MERGE_RULES}
    plain = replace(methods["none"], stability=StabilityConfig(weight=0.0))
    methods["none, no stability loss"] = plain
    print(f"{'':<24}" + "".join(f"{head:>20}" for head in HEADS))
    print(f"{'merge rule':<24}" + f"{'average':>11}{'forgot':>9}" * len(HEADS))
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        source = import_base("auto", None, sessions(test=False)[0], ModelOptions(), base)
        for name, config in methods.items():
            rows = [run(source, base, replace(config, head=head)) for head in HEADS.values()]
            cells = [f"{100 * row.average:>11.1f}{100 * row.forgotten:>9.1f}" for row in rows]
            print(f"{name:<24}" + "".join(cells))


if __name__ == "__main__":
    main()
