"""All methods, in the order of the table."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edge_pslora.compare.learners.analytic_variants import ProjectedLearner, ReducedLearner
from edge_pslora.compare.learners.first_session import FirstSessionLearner
from edge_pslora.compare.learners.frozen import FrozenLearner
from edge_pslora.compare.learners.lda import LdaLearner
from edge_pslora.compare.learners.line_search import LineSearchLearner
from edge_pslora.compare.learners.projected import RanPacLearner
from edge_pslora.compare.method import Method
from edge_pslora.compare.product import ProductLearner, without_loss
from edge_pslora.compare.rule import PlainRule, Rule
from edge_pslora.compare.rules.adaptive import Dynamic
from edge_pslora.compare.rules.ella import Ella
from edge_pslora.compare.rules.inflora import InfLora
from edge_pslora.compare.rules.magmax import MagMax
from edge_pslora.compare.rules.nlora import n_lora
from edge_pslora.compare.rules.olora import OLora
from edge_pslora.compare.rules.pslora import PsLora
from edge_pslora.compare.rules.replay import Replay, der_pp, ps_lora_replay
from edge_pslora.compare.rules.slao import Slao
from edge_pslora.compare.rules.ties import Ties
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


# published methods beyond the classical ones
_PUBLISHED = (
    *_lora("olora", "O-LoRA", "arXiv 2310.14152, Eq. 7 and 8", OLora),
    *_lora("nlora", "N-LoRA", "arXiv 2410.10179", n_lora),
    *_lora("inflora", "InfLoRA", "arXiv 2404.00228, Eq. 8 and 9", InfLora),
    *_lora("ella", "ELLA", "arXiv 2601.02232", Ella),
    *_lora("slao", "SLAO", "arXiv 2512.23017", Slao),
    *_lora("magmax", "MagMax", "arXiv 2407.06322, section 4", MagMax),
    *_lora("ties", "TIES", "arXiv 2306.01708, section 4", Ties),
    *_lora(
        "replay", "replay, 200 samples", "Vitter 1985, algorithm R", Replay, stores_samples=True
    ),
    *_lora("der++", "DER++, 200 samples", "arXiv 2004.07211, Eq. 6", der_pp, stores_samples=True),
    Method("ranpac", "RanPAC, frozen", "arXiv 2307.02251", RanPacLearner),
    Method(
        "ranpac+first",
        "RanPAC, first session adapted",
        "arXiv 2307.02251",
        lambda setup: RanPacLearner(setup, adapt=True),
    ),
    Method("slda", "streaming LDA", "arXiv 1909.01520", LdaLearner),
    Method("first", "first session adapted", "arXiv 2303.13199", FirstSessionLearner),
)

# ours, beyond the published PS-LoRA
_BEYOND = (
    *_lora("pslora-rule", "PS-LoRA as a rule", "arXiv 2512.08960, Eq. 4", PsLora),
    *_lora("dynamic", "PS-LoRA, weight by conflict", "this project", Dynamic),
    Method(
        "linesearch",
        "merge by line search",
        "this project",
        LineSearchLearner,
        stores_samples=True,
    ),
    Method(
        "linesearch+analytic",
        "merge by line search, analytic head",
        "this project",
        lambda setup: LineSearchLearner(setup, "analytic"),
        stores_samples=True,
    ),
    Method(
        "constructive",
        "constructive merge, no loss, analytic head",
        "this project",
        lambda setup: ProductLearner(setup, without_loss),
    ),
    *_lora(
        "pslora+replay",
        "PS-LoRA, 1 % of the samples",
        "this project",
        ps_lora_replay,
        stores_samples=True,
    ),
    Method("pslora+projected", "PS-LoRA, projected head", "this project", ProjectedLearner),
    Method("pslora+reduced", "PS-LoRA, head in 0.5 MB", "this project", ReducedLearner),
)

_ALL = (
    *_lora("sequential", "sequential LoRA", "arXiv 2106.09685", PlainRule),
    Method("frozen", "frozen features + analytic head", "ridge regression", FrozenLearner),
    Method("pslora", "PS-LoRA (default)", "this project", ProductLearner),
    *_PUBLISHED,
    *_BEYOND,
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
