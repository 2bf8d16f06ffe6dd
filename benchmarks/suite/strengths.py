"""`python -m benchmarks.suite.strengths`: how strong penalties that papers tune are, and our own settings.

Every candidate runs on the validation part of a few cheap streams, never on a test part. One strength
serves all streams: the one with the highest mean accuracy at the end.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.options import count
from benchmarks.suite.budget import Draw
from benchmarks.suite.streams import STREAMS
from edge_pslora.compare.learners.frozen import FrozenLearner
from edge_pslora.compare.method import Learner, Method, Setup
from edge_pslora.compare.methods import METHODS
from edge_pslora.compare.product import Change, ProductLearner
from edge_pslora.compare.rule import PlainRule, Rule
from edge_pslora.compare.rules.ella import Ella
from edge_pslora.compare.rules.ewc import EWC
from edge_pslora.compare.rules.inflora import InfLora
from edge_pslora.compare.rules.l2sp import L2SP
from edge_pslora.compare.rules.lwf import LwF
from edge_pslora.compare.rules.magmax import MagMax
from edge_pslora.compare.rules.nlora import n_lora
from edge_pslora.compare.rules.olora import OLora
from edge_pslora.compare.rules.replay import Replay
from edge_pslora.compare.rules.si import SI
from edge_pslora.compare.rules.ties import Ties
from edge_pslora.compare.run import run
from edge_pslora.compare.trainer import LoraLearner
from edge_pslora.config import AdaptConfig, Compete

CHEAP = ("gas", "heart", "activity", "digits")
Start = Callable[[Setup], Learner]


def _rule(new: Callable[[float], Rule], strength: float) -> Start:
    return lambda setup: LoraLearner(setup, new(strength))


def _head(times: float, learner: Callable[[Setup], Learner]) -> Start:
    """A linear head at another rate than TrainConfig.head_rate."""

    def start(setup: Setup) -> Learner:
        train = replace(setup.config.train, head_rate=times)
        return learner(replace(setup, config=replace(setup.config, train=train)))

    return start


def _sequential(setup: Setup) -> Learner:
    return LoraLearner(setup, PlainRule())


def _ours(change: Change) -> Start:
    return lambda setup: ProductLearner(setup, change)


def _transport(ridge: float) -> Start:
    """The default with another transport ridge."""

    def change(config: AdaptConfig) -> AdaptConfig:
        return replace(config, head=replace(config.head, transport_ridge=ridge))

    return _ours(change)


COMPETE: tuple[Compete, ...] = ("auto", "session", "all")


def _features(weight: float, compete: Compete = "auto", times: float = 1.0) -> Start:
    """The default with another weight on the features' drift, labels that compete, learning rate."""

    def change(config: AdaptConfig) -> AdaptConfig:
        rate = config.train.rate * times
        return replace(
            config,
            stability=replace(config.stability, features=weight),
            head=replace(config.head, compete=compete),
            train=replace(config.train, learning_rate=rate),
        )

    return _ours(change)


def _times(times: float) -> Start:
    """The default at another learning rate."""

    def change(config: AdaptConfig) -> AdaptConfig:
        rate = config.train.rate * times
        return replace(config, train=replace(config.train, learning_rate=rate))

    return _ours(change)


CANDIDATES: dict[str, Start] = {
    "none": _sequential,
    **{f"head {x:g}": _head(x, _sequential) for x in (1, 3, 10, 30, 100)},
    **{f"joint {x:g}": _head(x, _sequential) for x in (1, 3, 10, 30, 100)},
    **{f"paper {x:g}": _head(x, METHODS["paper"].start) for x in (1, 3, 10, 30, 100)},
    "frozen": FrozenLearner,
    **{f"transport {x:g}": _transport(x) for x in (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)},
    **{f"pslora-rate {x:g}": _times(x) for x in (0.1, 0.2, 0.3, 0.5, 1.0, 3.0, 10.0)},
    **{f"drift {x:g}": _features(x) for x in (0.0, 1.0, 3.0, 10.0)},
    **{f"drift-fast {x:g}": _features(x, times=2.0) for x in (1.0, 3.0, 10.0)},
    **{f"drift-all {x:g}": _features(x, "all") for x in (0.0, 3.0)},
    **{f"compete-{x}": _features(1.0, x) for x in COMPETE},
    **{f"ewc {x:g}": _rule(EWC, x) for x in (1.0, 10.0, 100.0, 1000.0)},
    **{f"si {x:g}": _rule(SI, x) for x in (0.01, 0.1, 1.0, 10.0)},
    **{f"lwf {x:g}": _rule(LwF, x) for x in (0.3, 1.0, 3.0)},
    **{f"l2sp {x:g}": _rule(L2SP, x) for x in (0.01, 0.1, 1.0)},
    **{f"olora {x:g}": _rule(OLora, x) for x in (0.05, 0.5, 5.0)},
    **{f"nlora {x:g}": _rule(n_lora, x) for x in (1.0, 10.0, 100.0)},
    **{f"ella {x:g}": _rule(Ella, x) for x in (0.1, 1.0, 10.0)},
    **{f"inflora {x:g}": _rule(InfLora, x) for x in (0.8, 0.95, 0.99)},
    **{f"magmax {x:g}": _rule(MagMax, x) for x in (0.5, 1.0)},
    **{f"ties {x:g}": _rule(lambda d: Ties(d, independent=False), x) for x in (0.2, 0.5)},
    "ties apart": lambda setup: LoraLearner(setup, Ties()),
    **{f"replay {x:g}": _rule(lambda w: Replay(weight=w), x) for x in (0.5, 1.0, 2.0)},
    **{f"der++ {x:g}": _rule(lambda d: Replay(weight=0.5, dark=d), x) for x in (0.1, 0.3, 1.0)},
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a line for each candidate: accuracy at the end on each stream, and the mean."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suite.strengths")
    parser.add_argument("--streams", nargs="+", choices=list(STREAMS), default=list(CHEAP))
    parser.add_argument("--seeds", type=count(1), default=2)
    methods = sorted({name.split()[0] for name in CANDIDATES})
    parser.add_argument("--methods", nargs="+", choices=methods, default=methods)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    chosen = {n: start for n, start in CANDIDATES.items() if n.split()[0] in options.methods}
    found: dict[str, list[float]] = {name: [] for name in chosen}
    for key in options.streams:
        averages = _averages(key, options.seeds, chosen)
        for name, values in averages.items():
            found[name].append(sum(values) / len(values))
        print(key, {name: round(values[-1], 3) for name, values in found.items()}, flush=True)
    print(f"\n{len(chosen)} candidates, {options.seeds} seeds, validation part")
    for name, values in found.items():
        shown = "  ".join(f"{value:.3f}" for value in values)
        print(f"{name:10} {sum(values) / len(values):.3f}  ({shown})")
    return 0


def _averages(key: str, seeds: int, candidates: Mapping[str, Start]) -> dict[str, list[float]]:
    """The accuracy at the end of each candidate with each seed."""
    stream = STREAMS[key]
    found: dict[str, list[float]] = {name: [] for name in candidates}
    for seed in range(seeds):
        with tempfile.TemporaryDirectory(prefix="edge-pslora-strengths-") as folder:
            base, work = Path(folder) / "base", Path(folder) / "data"
            base.mkdir()
            work.mkdir()
            order = seed % stream.orders
            loaded = stream.load(Draw(seed, order, base, work, stream.budget, stream.also))
            for name, start in candidates.items():
                method = Method(name, name, "", start, joint=name.startswith("joint"))
                results = run(method, loaded, stream.config(), seed, part="valid")
                found[name].append(results[0].average)
    return found


if __name__ == "__main__":
    sys.exit(main())
