"""Adapters by hooks: zero B changes nothing, the hooked forward is W + D, the model is left as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from edge_pslora.training.inject import Adapter, injected, new_adapters
from edge_pslora.training.targets import as_weight, find_targets


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.attention(x, x, x, need_weights=False)[0]
        return out


def _conv(**settings: object) -> nn.Module:
    return nn.Conv2d(3, 5, 3, **settings)  # type: ignore[arg-type]


def _series(**settings: object) -> nn.Module:
    return nn.Conv1d(3, 5, 3, **settings)  # type: ignore[arg-type]


class Padded(nn.Conv2d):
    """What timm and others do: more in forward than nn.Conv2d does, which a hook would not see."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(nn.functional.pad(input, (0, 1, 0, 1), value=1.0))


class Standardised(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        weight = self.weight / self.weight.norm(dim=1, keepdim=True)
        return nn.functional.linear(input, weight, self.bias)


class Scaled(nn.Embedding):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * 3


CASES = {
    "linear": (nn.Linear(7, 5), "0", torch.randn(4, 7)),
    "linear, three dimensions": (nn.Linear(7, 5, bias=False), "0", torch.randn(2, 4, 7)),
    "conv": (_conv(), "0", torch.randn(2, 3, 9, 8)),
    "conv, strided": (_conv(stride=2, padding=1), "0", torch.randn(2, 3, 9, 8)),
    "conv, dilated": (_conv(dilation=2, padding="same"), "0", torch.randn(2, 3, 9, 8)),
    "conv, circular": (_conv(padding=1, padding_mode="circular"), "0", torch.randn(2, 3, 9, 8)),
    "series": (_series(), "0", torch.randn(2, 3, 9)),
    "series, strided": (_series(stride=2, padding=2), "0", torch.randn(2, 3, 9)),
    "series, dilated": (_series(dilation=2, padding="same"), "0", torch.randn(2, 3, 9)),
    "series, reflected": (_series(padding=1, padding_mode="reflect"), "0", torch.randn(2, 3, 9)),
    "series, circular": (_series(padding=2, padding_mode="circular"), "0", torch.randn(2, 3, 9)),
    "Conv1D of GPT-2": (Conv1D(5, 7), "0", torch.randn(2, 4, 7)),
    "Conv1D, square": (Conv1D(6, 6), "0", torch.randn(2, 4, 6)),
    "a convolution that pads": (Padded(3, 5, 3, stride=2), "0", torch.randn(2, 3, 9, 8)),
    "a linear of unit rows": (Standardised(7, 5), "0", torch.randn(4, 7)),
    "an embedding that scales": (Scaled(11, 6), "0", torch.arange(10).reshape(2, 5)),
    "embedding": (nn.Embedding(11, 6), "0", torch.arange(10).reshape(2, 5)),
    "packed attention": (Attention(), "0.attention", torch.randn(2, 5, 8)),
    "attention output": (Attention(), "0.attention.out_proj", torch.randn(2, 5, 8)),
}


def _case(name: str, seed: int = 0) -> tuple[nn.Sequential, dict[str, Adapter], torch.Tensor]:
    layer, target, x = CASES[name]
    model = nn.Sequential(copy.deepcopy(layer)).eval().requires_grad_(False)
    adapters = new_adapters(
        find_targets(model, [target]), 3, 2.0, torch.Generator().manual_seed(seed)
    )
    return model, adapters, x


def _randomise(adapters: dict[str, Adapter]) -> None:
    generator = torch.Generator().manual_seed(1)
    for adapter in adapters.values():
        with torch.no_grad():
            adapter.B.normal_(generator=generator)


@pytest.mark.parametrize("name", CASES)
def test_a_fresh_adapter_changes_nothing(name):
    model, adapters, x = _case(name)
    with torch.no_grad(), injected(model, adapters):
        found = model(x)
    torch.testing.assert_close(found, model(x), rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_the_adapter_computes_what_the_merged_weight_computes(name):
    model, adapters, x = _case(name)
    _randomise(adapters)
    with torch.no_grad(), injected(model, adapters):
        found = model(x)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    (adapter,) = adapters.values()
    weight = dict(model.named_parameters())[adapter.target.weight_name]
    with torch.no_grad():
        weight.add_(as_weight(adapter.delta(), adapter.target, weight.shape))
        expected = model(x)
        model.load_state_dict(before)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, model(x), atol=1e-3), "the adapter had no effect at all"


@pytest.mark.parametrize("name", CASES)
def test_names_weights_and_hooks_are_as_before(name):
    model, adapters, x = _case(name)
    _randomise(adapters)
    names = list(model.state_dict())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with injected(model, adapters):
        model(x)
    assert list(model.state_dict()) == names
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("name", CASES)
def test_both_factors_get_a_gradient(name):
    model, adapters, x = _case(name)
    _randomise(adapters)
    with injected(model, adapters):
        model(x).square().sum().backward()
    for adapter in adapters.values():
        assert adapter.A.grad is not None
        assert bool(adapter.A.grad.any())
        assert adapter.B.grad is not None
        assert bool(adapter.B.grad.any())


def test_hooks_go_away_after_an_error():
    model, adapters, _ = _case("linear")
    with pytest.raises(RuntimeError, match="planted"), injected(model, adapters):
        raise RuntimeError("planted")
    assert not any(m._forward_hooks for m in model.modules())
