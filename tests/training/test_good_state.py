"""A step that is not finite is undone, whatever broke it; and too many of them end the session."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edge_pslora.config import AdaptConfig
from edge_pslora.errors import ModelError
from edge_pslora.progress import SilentProgress
from edge_pslora.training.adamw import AdamW
from edge_pslora.training.good_state import go_back, is_finite, remember
from edge_pslora.training.plan import plain_plan
from edge_pslora.training.session import SessionData, _features
from tests.tiny import ArrayInputs, TinyBackbone, blobs
from tests.torture.faulty_steps import PLACES, Fault, ends, learn, survives, watched


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_bad_step_costs_its_batch(place: str, value: float) -> None:
    with watched():
        assert survives({5: Fault(5, place, value)}, seed=1)


def test_three_in_a_row_are_survived_and_four_are_not() -> None:
    faults = {step: Fault(step, "loss", float("nan")) for step in (3, 4, 5)}
    assert survives(faults, seed=2)
    assert ends(faults | {9: Fault(9, "loss", float("nan"))}, seed=2)


def test_the_batches_after_it_are_learned_at_half_the_rate_from_where_it_was() -> None:
    """A fault at the last step leaves what the steps before it had made."""
    whole = {11: Fault(11, "loss", float("nan"))}
    with watched():
        _, one = learn(whole, 3)
        _, other = learn({11: Fault(11, "weight", float("nan"))}, 3)
    for name, adapter in one.items():
        assert torch.equal(adapter.A, other[name].A)
        assert torch.equal(adapter.B, other[name].B)


def test_back_is_back_twice() -> None:
    parameter = nn.Parameter(torch.ones(3))
    optimizer = AdamW([parameter], 0.1)
    (parameter.sum()).backward()
    optimizer.step()
    good, before = remember([parameter], optimizer), parameter.detach().clone()
    for _ in range(2):
        with torch.no_grad():
            parameter.fill_(float("nan"))
        optimizer.state[parameter]["exp_avg"].fill_(float("inf"))
        assert not is_finite([parameter], optimizer)
        go_back(good, [parameter], optimizer)
        assert is_finite([parameter], optimizer)
        assert torch.equal(parameter.detach(), before)


def test_features_that_are_not_finite_are_named() -> None:
    class Breaking(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.log()

    x, y = blobs(("a", "b"), 4)
    x = abs(x)
    x[2] = -1
    data, plan = SessionData(ArrayInputs(x), y), plain_plan(AdaptConfig())
    with pytest.raises(ModelError, match=r"features before: .* NaN or infinity for 1 of 8"):
        _features(TinyBackbone(Breaking()), data, plan, SilentProgress(), "features before")
