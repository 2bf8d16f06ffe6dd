"""From the values of flags to the library's frozen settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edge_pslora.config import PRESETS, AdaptConfig, EligibilityConfig
from edge_pslora.errors import UsageError
from edge_pslora.units import parse_duration, parse_size

# flag -> (section of AdaptConfig, field); "" is AdaptConfig itself
_FIELDS = {
    "rank": ("lora", "rank"),
    "alpha": ("lora", "alpha"),
    "target": ("lora", "target_modules"),
    "factors": ("lora", "factors"),
    "epochs": ("train", "epochs"),
    "batch_size": ("train", "batch_size"),
    "learning_rate": ("train", "learning_rate"),
    "max_length": ("train", "max_length"),
    "train_norms": ("train", "train_norms"),
    "early_stop": ("train", "early_stop"),
    "label_smoothing": ("train", "label_smoothing"),
    "balanced_sampling": ("train", "balanced_sampling"),
    "seed": ("train", "seed"),
    "head": ("head", "kind"),
    "ridge": ("head", "ridge"),
    "class_balance": ("head", "class_balance"),
    "compete": ("head", "compete"),
    "label_template": ("head", "label_template"),
    "merge": ("", "merge"),
    "stability_weight": ("stability", "weight"),
    "stability_temperature": ("stability", "temperature"),
    "stability_reading": ("stability", "reading"),
    "direction": ("stability", "direction"),
    "magnitude": ("stability", "magnitude"),
    "stability_every": ("stability", "every"),
    "stability_stride": ("stability", "row_stride"),
    "stability_features": ("stability", "features"),
    "stability_pull": ("stability", "most_pull"),
    "stability_cache": ("stability", "history_cache"),
    "precision": ("engine", "precision"),
    "micro_batch": ("engine", "micro_batch"),
    "checkpointing": ("engine", "checkpointing"),
    "prefix_cache": ("engine", "prefix_cache"),
    "adapt_depth": ("engine", "adapt_depth"),
    "device": ("engine", "device"),
    "history_budget": ("budget", "history_bytes"),
    "anchor_budget": ("budget", "anchor_bytes"),
    "head_budget": ("budget", "head_bytes"),
    "ram_budget": ("budget", "ram_bytes"),
    "time_budget": ("budget", "time_seconds"),
    "disk_budget": ("budget", "disk_bytes"),
    "max_forgetting": ("gate", "max_forgetting"),
    "force": ("gate", "force"),
}
_PARSERS = {
    "history_budget": parse_size,
    "anchor_budget": parse_size,
    "head_budget": parse_size,
    "ram_budget": parse_size,
    "time_budget": parse_duration,
    "disk_budget": parse_size,
}


def adapt_config(preset: str, flags: Mapping[str, Any]) -> AdaptConfig:
    """The preset with every flag that was given (is not None) on top.

    Raises:
        UsageError: a value that the settings refuse.
    """
    config = PRESETS[preset]()
    for flag, value in flags.items():
        if value is None:
            continue
        section, field = _FIELDS[flag]
        if flag in _PARSERS:
            value = _PARSERS[flag](value, "--" + flag.replace("_", "-"))
        if section:
            value = replace(getattr(config, section), **{field: value})
        # One replace per flag: the error of a bad value names that flag.
        config = replace(config, **{section or field: value})
    return config


def eligibility(
    *,
    only_on_power: bool,
    min_battery: str | None,
    max_temperature: str | None,
    max_load: float | None,
    min_free: str | None,
) -> EligibilityConfig:
    """When the device may learn, from "30%", "80C" and "2GB".

    Raises:
        UsageError: one of them is not understood.
    """
    return EligibilityConfig(
        only_on_power,
        _with_unit(min_battery, "%", "--min-battery"),
        _with_unit(max_temperature, "C", "--max-temperature"),
        max_load,
        None if min_free is None else parse_size(min_free, "--min-free"),
    )


def _with_unit(text: str | None, unit: str, where: str) -> float | None:
    if text is None:
        return None
    try:
        number = float(text.strip().removesuffix(unit))
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(
            where,
            expected=f"a number such as 50{unit}",
            found=repr(text),
            remedy=f"write a number, with or without {unit}",
        )
    return number


def without_samples(anchor_budget: str | None) -> str:
    """The anchor budget under --no-keep-samples.

    Raises:
        UsageError: a budget for samples was given as well.
    """
    if anchor_budget is not None and parse_size(anchor_budget, "--anchor-budget") > 0:
        raise UsageError(
            "--no-keep-samples",
            expected="no --anchor-budget beside it",
            found=f"--anchor-budget {anchor_budget}",
            remedy="leave one of them out",
        )
    return "0"


def per_channel(text: str | None, where: str) -> float | tuple[float, float, float] | None:
    """ "0.5" -> 0.5, "0.48,0.45,0.4" -> three numbers, None -> None.

    Raises:
        UsageError: neither one number nor three.
    """
    if text is None:
        return None
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not all(map(math.isfinite, numbers)) or len(numbers) not in (1, 3):
        raise UsageError(
            where,
            expected="one number, or three with commas between",
            found=repr(text),
            remedy="write it as 0.5 or as 0.485,0.456,0.406",
        )
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1], numbers[2])
