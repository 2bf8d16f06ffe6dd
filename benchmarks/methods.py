"""The methods that the benchmarks compare, each a name for an AdaptConfig."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edge_pslora.config import (
    AdaptConfig,
    HeadConfig,
    StabilityConfig,
    default_preset,
    paper_preset,
    sequential_preset,
)
from edge_pslora.errors import UsageError

SEQUENTIAL, DEFAULT, FROZEN = "sequential", "default", "frozen"
JOINT_LINEAR, JOINT_DEFAULT = "joint-linear", "joint-default"


@dataclass(frozen=True)
class Method:
    """key: what the command line calls it. joint: one session on the union of all tasks' data."""

    key: str
    name: str
    config: AdaptConfig
    joint: bool = False


def all_methods() -> tuple[Method, ...]:
    default = default_preset()
    no_loss = replace(default, stability=StabilityConfig(weight=0.0))
    # no adapter at all: no epoch, so the update is zero and the features stay those of the base
    frozen = replace(
        no_loss,
        merge="none",
        train=replace(default.train, epochs=0),
        head=HeadConfig(kind="analytic"),
    )
    return (
        Method(SEQUENTIAL, "sequential LoRA", sequential_preset()),
        Method("paper", "paper", paper_preset()),
        Method(DEFAULT, "PS-LoRA (default)", default),
        Method(FROZEN, "frozen features + analytic head", frozen),
        Method("no-loss", "default without loss", no_loss),
        Method("no-merge", "default without merge", replace(default, merge="none")),
        Method("no-both", "default without both", replace(no_loss, merge="none")),
        Method(JOINT_LINEAR, "joint, linear head", sequential_preset(), joint=True),
        Method(JOINT_DEFAULT, "joint, default", default, joint=True),
    )


def choose(keys: Sequence[str], only: str | None = None) -> tuple[Method, ...]:
    """The methods with these keys ("all": every one), in the order asked for.

    only: keeps those whose key or name contains this text, in any case.

    Raises:
        UsageError: an unknown key, or nothing is left.
    """
    known = {method.key: method for method in all_methods()}
    wanted = list(known) if "all" in keys else list(dict.fromkeys(keys))
    unknown = [key for key in wanted if key not in known]
    chosen = tuple(
        known[key]
        for key in wanted
        if key in known and (only is None or only.lower() in f"{key} {known[key].name}".lower())
    )
    if unknown or not chosen:
        raise UsageError(
            "--methods" if unknown else "--only",
            expected=f"some of {', '.join(known)}, or all",
            found=", ".join(unknown) if unknown else f"no method named like {only!r}",
            remedy="change the option",
        )
    return chosen
