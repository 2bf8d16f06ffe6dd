"""All methods, in the order of the table."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edge_pslora.compare.learners.frozen import FrozenLearner
from edge_pslora.compare.method import Method
from edge_pslora.compare.product import ProductLearner
from edge_pslora.compare.rule import PlainRule, Rule
from edge_pslora.compare.trainer import LoraLearner
from edge_pslora.errors import UsageError


def _lora(
    key: str, name: str, paper: str, rule: Callable[[], Rule], *, stores_samples: bool = False
) -> tuple[Method, Method]:
    """A LoRA method with the linear head as published, and with the product's analytic head."""
    return (
        Method(key, name, paper, lambda setup: LoraLearner(setup, rule()), stores_samples),
        Method(
            f"{key}+analytic",
            f"{name}, analytic head",
            paper,
            lambda setup: LoraLearner(setup, rule(), "analytic"),
            stores_samples,
        ),
    )


_ALL = (
    *_lora("sequential", "sequential LoRA", "arXiv 2106.09685", PlainRule),
    Method("frozen", "frozen features + analytic head", "ridge regression", FrozenLearner),
    Method("pslora", "PS-LoRA (default)", "this project", ProductLearner),
)

METHODS: dict[str, Method] = {method.key: method for method in _ALL}


def choose(keys: Sequence[str]) -> tuple[Method, ...]:
    """The methods with these keys ("all": every one), in the order of the table.

    Raises:
        UsageError: an unknown key.
    """
    unknown = [key for key in keys if key not in METHODS and key != "all"]
    if unknown or not keys:
        raise UsageError(
            "--methods",
            expected=f"some of {', '.join(METHODS)}, or all",
            found=", ".join(unknown) or "none",
            remedy="change the option",
        )
    return tuple(m for key, m in METHODS.items() if key in keys or "all" in keys)
