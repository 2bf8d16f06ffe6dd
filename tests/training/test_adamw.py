"""Our AdamW against torch's: the same bits, and none of what torch's brings along."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from edge_pslora.models.fit import _falling
from edge_pslora.training.adamw import AdamW


@pytest.mark.parametrize("times", [1.0, 10.0])
@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_every_step_gives_the_bits_of_torch_also_where_a_gradient_is_missing(
    decay: float, times: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (
        [nn.Parameter(torch.linspace(-1, 1, size).reshape(shape)) for size, shape in SHAPES]
        for _ in range(2)
    )
    mine = AdamW(ours, 1e-3, decay, {ours[2]: times})
    groups = [{"params": theirs[:2]}, {"params": theirs[2:]}]
    torch_s = torch.optim.AdamW(groups, lr=1e-3, weight_decay=decay)
    for number in range(12):
        mine.learning_rate = torch_s.param_groups[0]["lr"] = 1e-3 / (1 + number)
        torch_s.param_groups[1]["lr"] = mine.learning_rate * times
        mine.zero_grad()
        torch_s.zero_grad(set_to_none=True)
        for place, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            gradient = torch.randn(a.shape, generator=generator) * 10.0 ** (number - 6)
            if place == 1 and number % 3 == 0:
                continue  # a norm beside the features gets none
            a.grad, b.grad = gradient, gradient.clone()
        mine.step()
        torch_s.step()
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a, b)
            assert mine.state[a].keys() == torch_s.state[b].keys()
            for name, value in torch_s.state[b].items():
                assert torch.equal(mine.state[a][name], value)


def test_the_rates_of_a_fit_are_those_of_torch() -> None:
    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(1))], lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)
    rate = 2e-3
    for step in range(1, 41):
        rate *= _falling(step, 40)
        optimizer.step()
        schedule.step()
        assert rate == optimizer.param_groups[0]["lr"]


SHAPES = ((32, (4, 8)), (6, (6,)), (96, (8, 12)))


def test_a_step_imports_no_compiler() -> None:
    code = (
        "import sys, torch; from torch import nn\n"
        "from edge_pslora.training.adamw import AdamW\n"
        "p = nn.Parameter(torch.ones(3)); o = AdamW([p], 1e-3)\n"
        "o.zero_grad(); p.sum().backward(); nn.utils.clip_grad_norm_([p], 1.0); o.step()\n"
        "assert 0.998 < p[0] < 1.0, p\n"
        "print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "False", done.stderr
