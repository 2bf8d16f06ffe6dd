"""All methods, in the order of the table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from edge_pslora.compare.learners.analytic_variants import ProjectedLearner, ReducedLearner
from edge_pslora.compare.learners.finetune import FineTuneLearner
from edge_pslora.compare.learners.first_session import FirstSessionLearner
from edge_pslora.compare.learners.frozen import FrozenLearner
from edge_pslora.compare.learners.held_out import HeldOutLearner, HoldingRule
from edge_pslora.compare.learners.lda import LdaLearner
from edge_pslora.compare.learners.projected import RanPacLearner
from edge_pslora.compare.method import Learner, Method, Setup
from edge_pslora.compare.product import Change, ProductLearner
from edge_pslora.compare.rule import PlainRule, Rule
from edge_pslora.compare.rules.average import average_rule
from edge_pslora.compare.rules.dynamic import Dynamic
from edge_pslora.compare.rules.ella import Ella
from edge_pslora.compare.rules.ewc import EWC
from edge_pslora.compare.rules.held import HeldOut
from edge_pslora.compare.rules.inflora import InfLora
from edge_pslora.compare.rules.l2sp import L2SP
from edge_pslora.compare.rules.line_search import LineSearch
from edge_pslora.compare.rules.lwf import LwF
from edge_pslora.compare.rules.magmax import MagMax
from edge_pslora.compare.rules.nlora import n_lora
from edge_pslora.compare.rules.olora import OLora
from edge_pslora.compare.rules.replay import Replay, der_pp, ps_lora_replay
from edge_pslora.compare.rules.si import SI
from edge_pslora.compare.rules.slao import Slao
from edge_pslora.compare.rules.ties import Ties
from edge_pslora.compare.trainer import LoraLearner
from edge_pslora.config import (
    AdaptConfig,
    Compete,
    HeadKind,
    MergeRule,
    StabilityConfig,
    paper_preset,
)
from edge_pslora.errors import UsageError


def _lora(
    key: str,
    name: str,
    paper: str,
    rule: Callable[[], Rule],
    *,
    stores_samples: bool = False,
    needs_head: bool = False,
    held: bool = False,
) -> tuple[Method, Method]:
    """A LoRA method with the linear head as published, and with the product's analytic head; `held`: and
    with its hold on features."""
    linear = Method(
        key, name, paper, lambda setup: LoraLearner(setup, rule()), stores_samples, needs_head
    )
    analytic = replace(
        linear,
        key=f"{key}+analytic",
        name=f"{name}, analytic head",
        start=lambda setup: LoraLearner(setup, rule(), "analytic", held=held),
        needs_head=True,
    )
    return linear, analytic


def _product(key: str, name: str, change: Change, *, needs_head: bool = False) -> Method:
    """A variant of PS-LoRA, by the product's own session."""
    paper = "arXiv 2512.08960, Eq. 4 and 5"
    return Method(
        key, name, paper, lambda setup: ProductLearner(setup, change), needs_head=needs_head
    )


def _stability(**changes: Any) -> Change:
    return lambda config: replace(config, stability=replace(config.stability, **changes))


def _merged(rule: MergeRule) -> Change:
    return lambda config: replace(config, merge=rule)


def _paper(**changes: Any) -> Change:
    """The published method as its sources state it, within the budget; and changes to that."""
    preset = paper_preset()

    def change(config: AdaptConfig) -> AdaptConfig:
        lora = replace(config.lora, factors="float32")
        published = replace(preset, lora=lora, train=config.train, budget=config.budget)
        return replace(published, **changes)

    return change


def _competing(compete: Compete) -> Change:
    return lambda config: replace(config, head=replace(config.head, compete=compete))


def _no_transport(config: AdaptConfig) -> AdaptConfig:
    return replace(config, head=replace(config.head, transport=False))


def _joint_linear(setup: Setup) -> Learner:
    return LoraLearner(setup, PlainRule())


NO_LOSS = StabilityConfig(weight=0.0, features=0.0)
_PRODUCT = (
    Method("pslora", "PS-LoRA (default)", "this project", ProductLearner),
    _product("pslora-loss", "default, loss only", _merged("none")),
    _product("pslora-merge", "default, merge only", _stability(weight=0.0)),
    _product(
        "pslora-neither",
        "default, neither",
        lambda config: _stability(weight=0.0)(_merged("none")(config)),
    ),
    _product("pslora-product", "default, loss as product", _stability(reading="product")),
    _product("pslora-direction", "default, direction only", _stability(magnitude=False)),
    _product("pslora-magnitude", "default, magnitude only", _stability(direction=False)),
    _product("pslora-max_magnitude", "default, max_magnitude merge", _merged("max_magnitude")),
    _product("pslora-cumulative", "default, cumulative merge", _merged("cumulative")),
    _product("pslora-average", "default, average merge", _merged("average")),
    _product("pslora-free", "default, features not held", _stability(features=0.0)),
    _product("pslora-session", "default, session's labels compete", _competing("session")),
    _product("pslora-all", "default, all labels compete", _competing("all")),
    _product(
        "pslora-bare",
        "default, neither of both",
        lambda config: _stability(features=0.0)(_competing("all")(config)),
    ),
    _product("pslora-no-transport", "default without transport", _no_transport, needs_head=True),
    _product("paper", "PS-LoRA, published parts, linear head", _paper()),
    _product("paper-loss", "published parts, loss only", _paper(merge="none")),
    _product("paper-merge", "published parts, merge only", _paper(stability=NO_LOSS)),
    _product(
        "paper-elementwise",
        "published parts, loss element by element",
        _paper(stability=StabilityConfig(row_stride=1, features=0.0, most_pull=None)),
    ),
)


def _ranpac_adapted(setup: Setup) -> Learner:
    return RanPacLearner(setup, adapt=True)


def _by_anchors() -> HoldingRule:
    return Dynamic(held=HeldOut())


def _held_out(
    key: str, name: str, rule: Callable[[], HoldingRule], *, analytic: bool = False
) -> Method:
    """A rule of ours that keeps a tenth of the samples out of training, and some of them for good."""
    kind: HeadKind = "analytic" if analytic else "linear"
    return Method(
        f"{key}+analytic" if analytic else key,
        f"{name}, analytic head" if analytic else name,
        "this project",
        lambda setup: HeldOutLearner(setup, rule(), kind),
        stores_samples=True,
        needs_head=analytic,
    )


def _own(
    key: str,
    name: str,
    start: Callable[[Setup], Learner],
    paper: str = "this project",
    *,
    stores_samples: bool = False,
) -> Method:
    """A method with a head of its own kind."""
    return Method(key, name, paper, start, stores_samples, needs_head=True)


# published methods that are younger than continual learning's classics
_PUBLISHED = (
    *_lora("olora", "O-LoRA", "arXiv 2310.14152, Eq. 7 and 8", OLora),
    *_lora("nlora", "N-LoRA", "arXiv 2410.10179", n_lora),
    *_lora("inflora", "InfLoRA", "arXiv 2404.00228, Eq. 8 and 9", InfLora),
    *_lora("ella", "ELLA", "arXiv 2601.02232", Ella),
    *_lora("slao", "SLAO", "arXiv 2512.23017", Slao),
    *_lora("magmax", "MagMax", "arXiv 2407.06322, section 4", MagMax),
    *_lora("ties", "TIES", "arXiv 2306.01708, section 4", Ties),
    *_lora("replay", "replay, 200 samples", "Vitter 1985", Replay, stores_samples=True),
    *_lora(
        "der++",
        "DER++, 200 samples",
        "arXiv 2004.07211, Eq. 6",
        der_pp,
        stores_samples=True,
        needs_head=True,
    ),
    _own("ranpac", "RanPAC, frozen", RanPacLearner, "arXiv 2307.02251"),
    _own("ranpac+first", "RanPAC, first session", _ranpac_adapted, "arXiv 2307.02251"),
    _own("slda", "streaming LDA", LdaLearner, "arXiv 1909.01520"),
    _own("first", "first session adapted", FirstSessionLearner, "arXiv 2303.13199"),
)

# ours, beyond the published PS-LoRA
_BEYOND = (
    *_lora("dynamic", "PS-LoRA, weight by conflict", "this project", Dynamic),
    _held_out("dynamic-anchors", "PS-LoRA, weight by anchors", _by_anchors),
    _held_out("dynamic-anchors", "PS-LoRA, weight by anchors", _by_anchors, analytic=True),
    _held_out("linesearch", "merge by line search", LineSearch),
    _held_out("linesearch", "merge by line search", LineSearch, analytic=True),
    *_lora(
        "pslora+replay",
        "PS-LoRA, 1 % of the samples",
        "this project",
        ps_lora_replay,
        stores_samples=True,
        held=True,
    ),
    _own("pslora+projected", "PS-LoRA, projected head", ProjectedLearner),
    _own("pslora+reduced", "PS-LoRA, head in 0.5 MB", ReducedLearner),
)

_ALL = (
    *_lora("sequential", "sequential LoRA", "arXiv 2106.09685", PlainRule),
    Method("finetune", "sequential full fine-tuning", "all target weights", FineTuneLearner),
    Method(
        "finetune+analytic",
        "sequential full fine-tuning, analytic head",
        "all target weights",
        lambda setup: FineTuneLearner(setup, "analytic"),
        needs_head=True,
    ),
    Method(
        "frozen",
        "frozen features + analytic head",
        "ridge regression",
        FrozenLearner,
        needs_head=True,
    ),
    *_PRODUCT,
    *_lora("average", "plain averaging", "mean of the updates", average_rule),
    *_lora("l2sp", "L2-SP", "arXiv 1802.01483, Eq. 3", L2SP),
    *_lora("ewc", "EWC, online", "arXiv 1805.06370, Eq. 9", EWC),
    *_lora("si", "SI", "arXiv 1703.04200, Eq. 4 and 5", SI),
    *_lora("lwf", "LwF", "arXiv 1606.09282, Eq. 2", LwF, needs_head=True),
    *_PUBLISHED,
    *_BEYOND,
    Method("joint", "joint training, linear head", "upper bound", _joint_linear, joint=True),
    Method("joint+pslora", "joint training, default", "upper bound", ProductLearner, joint=True),
)

METHODS: dict[str, Method] = {method.key: method for method in _ALL}


def choose(keys: Sequence[str]) -> tuple[Method, ...]:
    """The methods with these keys ("all": every one), in the order of the table.

    Raises:
        UsageError: an unknown key.
    """
    unknown = [key for key in keys if key not in METHODS and key != "all"]
    if unknown or not keys:
        near = get_close_matches(unknown[0], METHODS, n=3) if unknown else []
        raise UsageError(
            "--methods",
            expected="keys of methods, such as " + ", ".join(near or ("pslora", "frozen", "ewc")),
            found=", ".join(unknown) or "none",
            remedy="see them all: edge-pslora compare --list",
        )
    return tuple(m for key, m in METHODS.items() if key in keys or "all" in keys)
