"""NaN and infinity at random steps of training: in a sample, the loss, a gradient, a weight, a moment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from edge_pslora.config import StabilityConfig, TrainConfig
from edge_pslora.errors import EdgePsloraError
from edge_pslora.training import loop
from edge_pslora.training.adamw import AdamW
from edge_pslora.training.inject import Adapter, injected, new_adapters
from edge_pslora.training.targets import find_targets
from tests.tiny import ArrayInputs
from tests.torture.plan import Plan, Row

PLACES = ("sample", "loss", "gradient", "weight", "first moment", "second moment")
STEPS = 12


@dataclass(frozen=True)
class Fault:
    """step: counted from 0, with those that were skipped."""

    step: int
    place: str
    value: float


def learn(faults: Mapping[int, Fault], seed: int) -> tuple[loop.TrainLog, dict[str, Adapter]]:
    """One tiny session of STEPS steps with these faults; then its log and adapters.

    Raises:
        EdgePsloraError: too many of them.
    """
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    adapters = new_adapters(find_targets(model, ["0", "2"]), 2, 1.0, generator)
    trained = [p for a in adapters.values() for p in (a.A, a.B)]
    calls = iter(range(STEPS))

    def compute_loss(inputs: dict[str, torch.Tensor], _: object) -> torch.Tensor:
        fault = faults.get(next(calls))
        x = inputs["x"]
        if fault is not None and fault.place == "sample":
            x = x.clone()
            x[0, 0] = fault.value
        loss = (model(x) - 1).pow(2).mean()
        if fault is None:
            return loss
        if fault.place == "loss":
            return loss * fault.value
        if fault.place == "gradient":
            loss.register_hook(lambda gradient: gradient * fault.value)
        elif fault.place == "weight":
            with torch.no_grad():
                trained[0][0, 0] = fault.value
        elif "moment" in fault.place:
            _spoil_moment(trained, fault)
        return loss

    rng = np.random.default_rng(seed)
    rows = ArrayInputs(rng.normal(size=(4 * STEPS, 6)).astype(np.float32))
    config = TrainConfig(epochs=1, batch_size=4, learning_rate=1e-2, seed=seed)
    with injected(model, adapters):
        none = StabilityConfig(weight=0.0)
        log = loop.train(compute_loss, rows, adapters, {}, {}, none, config, 1, loop.LoopHooks())
    return log, adapters


def _spoil_moment(trained: list[nn.Parameter], fault: Fault) -> None:
    """In the optimiser, which the loop keeps to itself."""
    name = "exp_avg" if fault.place == "first moment" else "exp_avg_sq"
    for optimizer in _OPTIMIZERS[-1:]:
        for parameter in trained:
            if name in optimizer.state[parameter]:
                optimizer.state[parameter][name].view(-1)[0] = fault.value


_OPTIMIZERS: list[AdamW] = []


class _Watched(AdamW):
    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)  # type: ignore[arg-type]
        _OPTIMIZERS[:] = [self]


@contextmanager
def watched() -> Iterator[None]:
    """Within the block the loop's optimiser can be got at."""
    loop.AdamW = _Watched  # type: ignore[misc]
    try:
        yield
    finally:
        loop.AdamW = AdamW  # type: ignore[misc]


def random_faults(count: int, rng: np.random.Generator) -> dict[int, Fault]:
    """At different steps, none at the first: no layer is to look dead."""
    steps = 1 + rng.permutation(STEPS - 1)[:count]
    values = (float("nan"), float("inf"), float("-inf"))
    return {
        int(step): Fault(int(step), str(rng.choice(PLACES)), float(rng.choice(values)))
        for step in steps
    }


def rows(plan: Plan) -> list[Row]:
    rng = np.random.default_rng([plan.seed, 4])
    sessions = plan.size(400, 15)
    bad = unended = 0
    first = ""
    with watched():
        for number in range(sessions):
            faults = random_faults(1 + number % loop.MAX_BAD_STEPS, rng)
            if not survives(faults, number):
                bad += 1
                first = first or str(sorted(faults.items()))
            unended += not ends(random_faults(loop.MAX_BAD_STEPS + 1, rng), number)
    return [
        Row(
            "NaN or infinity in up to three steps: not survived", sessions, bad, sessions, 0, first
        ),
        Row("in more than three: learned from all the same", sessions, unended, sessions),
    ]


def survives(faults: Mapping[int, Fault], seed: int) -> bool:
    """Every value is finite, each fault cost its step, and something was learned from the others."""
    try:
        log, adapters = learn(faults, seed)
    except EdgePsloraError:
        return False
    finite = all(bool(a.A.isfinite().all() and a.B.isfinite().all()) for a in adapters.values())
    moved = all(bool(adapter.B.any()) for adapter in adapters.values())
    return finite and moved and (log.steps, log.bad_steps) == (STEPS - len(faults), len(faults))


def ends(faults: Mapping[int, Fault], seed: int) -> bool:
    try:
        learn(faults, seed)
    except EdgePsloraError:
        return True
    return False


def _no_way_back() -> None:
    loop.go_back = lambda *arguments: None


def _weights_unseen() -> None:
    loop.is_finite = lambda *arguments: True


PLANTS: Mapping[str, Callable[[], None]] = {
    "no way back": _no_way_back,
    "weights are not looked at": _weights_unseen,
}
