"""Reading PEFT's LoRA folders without PEFT and without torch: header checks first, arrays later.

Keys: base_model.model.<path>.lora_A.weight [r, in], .lora_B.weight [out, r] (convolutions: 4-D A,
B of kernel 1), base_model.model.<path>.lora_embedding_A [r, num], .lora_embedding_B [dim, r]. A
packed attention carries two pairs: <path>.lora_* for in_proj_weight and
<path>.base_layer.out_proj.lora_* for its output projection.
Whatever would change the result and is not understood is an AdapterError, never a warning.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from edge_pslora.errors import AdapterError
from edge_pslora.workspace import strict_json
from edge_pslora.workspace.tensor_header import Header
from edge_pslora.workspace.tensors import read_header

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
SIDECAR = "pslora_config.json"
TRANSPOSED = "transposed"  # in the sidecar: paths of the layers that are transformers' Conv1D
PREFIX = "base_model.model."
OUT_PROJ = ".base_layer.out_proj"  # of a packed attention, as PEFT stores it

_LORA_KEY = re.compile(r"(.+)\.(?:lora_([AB])\.weight|lora_embedding_([AB]))")
# fields that do not change what a finished adapter computes, or that are handled below
_NEUTRAL = frozenset(
    {
        "alpha_pattern",
        "auto_mapping",
        "base_model_name_or_path",
        "bias",
        "ensure_weight_tying",
        "eva_config",
        "exclude_modules",
        "fan_in_fan_out",
        "inference_mode",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_alpha",
        "lora_dropout",
        "megatron_config",
        "megatron_core",
        "modules_to_save",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "r",
        "rank_pattern",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
        "use_rslora",
    }
)
# the other initialisations change the base weights, so that the folder alone is not the update
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
# a pattern that repeats a group, or many times, can take for ever to match
_SLOW_PATTERN = re.compile(r"\)[*+?{]|(?:[*+?{].*){3}")
_REPEATS = re.compile(r"[*+?{]")
_MAX_PATTERNS = 4096
_MAX_STEPS = 10**9  # of matching all patterns with all names, in the worst case: some seconds
_MAX_SCALE = 1e9  # of alpha and of a rank: beyond it nothing is an adapter


@dataclass(frozen=True)
class LoraModule:
    """One adapted module.

    path: its name, as stored; tensor: the weight it adapts; scaling: alpha / r (rsLoRA: / sqrt r);
    packed: half of a packed attention, of which PEFT always stores both; fan_in_fan_out: the weight
    is [in, out], as far as the folder says so.
    """

    path: str
    tensor: str
    a_key: str
    b_key: str
    rank: int
    scaling: float
    embedding: bool
    fan_in_fan_out: bool
    packed: bool = False

    def transposes(self, dimensions: int) -> bool:
        """Whether the update of a weight with so many dimensions is (B A)^T."""
        return self.embedding or (self.fan_in_fan_out and dimensions == 2)


@dataclass(frozen=True)
class Adapter:
    """One checked folder.

    others: name of a saved whole tensor in the model -> its key. layouts_known: the folder says of each
    layer whether its weight is [in, out]; else one flag stands for all, and PEFT corrects it.
    """

    folder: Path
    header: Header
    modules: tuple[LoraModule, ...]
    others: Mapping[str, str]
    layouts_known: bool = False

    @property
    def weights(self) -> Path:
        return self.folder / WEIGHTS


def read_adapter(folder: Path) -> Adapter:
    """Check the configuration and every key and shape; no tensor is read yet.

    Raises:
        AdapterError: not a LoRA folder, or one that cannot be merged exactly.
    """
    if not (folder / CONFIG).is_file():
        found = "no such folder" if not folder.exists() else f"no {CONFIG}"
        raise _bad(str(folder), f"a PEFT folder with {CONFIG}", found, "give an adapter's folder")
    config = strict_json.read(folder / CONFIG, error=AdapterError)
    _check_config(config, str(folder / CONFIG))
    if not (folder / WEIGHTS).exists():
        remedy = "save it again with safe_serialization=True; pickled weights are never loaded"
        raise _bad(str(folder), WEIGHTS, "none", remedy)
    header = read_header(folder / WEIGHTS, error=AdapterError)
    where = str(folder / WEIGHTS)
    factors: dict[str, dict[str, str]] = {}
    others = {}
    for key in header.specs:
        name = key.removeprefix(PREFIX)
        match = _LORA_KEY.fullmatch(name)
        if name == key:
            raise _bad(where, f"keys that start with {PREFIX}", key, "save it again with PEFT")
        if match:
            factors.setdefault(match[1], {})[match[2] or f"embedding_{match[3]}"] = key
        else:
            others[_check_other(name, config, where)] = key
    if not factors:
        raise _bad(where, "LoRA factors", "none", "give the folder of a trained LoRA adapter")
    _check_patterns(config, tuple(factors), where)
    attentions = {path.removesuffix(OUT_PROJ) for path in factors if path.endswith(OUT_PROJ)}
    modules = tuple(
        _module(path, keys, attentions, header, config, where)
        for path, keys in sorted(factors.items())
    )
    transposed = _transposed(folder)
    if transposed is not None:
        modules = tuple(replace(m, fan_in_fan_out=m.path in transposed) for m in modules)
    return Adapter(folder, header, modules, others, transposed is not None)


def check_fits(adapter: Adapter, module: LoraModule, shape: tuple[int, ...]) -> None:
    """The update of `module` has the `shape` of the base weight, or an AdapterError."""
    a_shape = adapter.header.specs[module.a_key].shape
    outputs = adapter.header.specs[module.b_key].shape[0]
    grouped = len(shape) == len(a_shape) > 2 and 0 < shape[1] < a_shape[1]
    if grouped and (outputs, *a_shape[2:]) == (shape[0], *shape[2:]):
        raise _grouped(f"{adapter.weights}, {module.path}", a_shape[1] // shape[1])
    natural = (outputs, *a_shape[1:])
    if module.transposes(len(shape)):
        natural = (*a_shape[1:], outputs)
    if natural != shape:
        raise _bad(
            f"{adapter.weights}, {module.path}",
            f"an update of shape {shape}, as the base weight",
            str(natural),
            "use the base model that the adapter was trained on",
        )


def _module(
    path: str,
    keys: dict[str, str],
    attentions: set[str],
    header: Header,
    config: Mapping[str, Any],
    where: str,
) -> LoraModule:
    embedding = keys.keys() == {"embedding_A", "embedding_B"}
    if not embedding and keys.keys() != {"A", "B"}:
        found = ", ".join(f"lora_{name}" for name in sorted(keys))
        raise _bad(f"{where}, {path}", "both factors, A and B", found, "save the adapter again")
    a_key, b_key = (
        keys["embedding_A" if embedding else "A"],
        keys["embedding_B" if embedding else "B"],
    )
    a_shape, b_shape = header.specs[a_key].shape, header.specs[b_key].shape
    owner = path.removesuffix(OUT_PROJ)  # PEFT's patterns see an attention as one module
    rank = _pattern_value(owner, config.get("rank_pattern"), config["r"], where)
    alpha = _pattern_value(owner, config.get("alpha_pattern"), config["lora_alpha"], where)
    if len(b_shape) > 2 and len(b_shape) == len(a_shape) and 0 < b_shape[1] < a_shape[0] == rank:
        raise _grouped(f"{where}, {path}", a_shape[0] // b_shape[1])
    if (
        rank != int(rank)
        or len(a_shape) < 2
        or len(a_shape) != len(b_shape)
        or a_shape[0] != rank
        or b_shape[1] != rank
        or math.prod(b_shape[2:]) != 1
    ):
        raise _bad(
            f"{where}, {path}",
            f"A [{rank}, in] and B [out, {rank}], as {CONFIG} says",
            f"A {list(a_shape)} and B {list(b_shape)}",
            f"restore the {CONFIG} that belongs to these weights",
        )
    scaling = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    packed = owner in attentions
    if path != owner:
        tensor = f"{owner}.out_proj.weight"
    else:
        tensor = f"{path}.in_proj_weight" if packed else f"{path}.weight"
    fan = bool(config.get("fan_in_fan_out")) and not packed
    return LoraModule(path, tensor, a_key, b_key, int(rank), scaling, embedding, fan, packed)


def _transposed(folder: Path) -> frozenset[str] | None:
    """The layers that our sidecar names as transposed; None where there is no such list."""
    if not (folder / SIDECAR).is_file():
        return None
    names = strict_json.read(folder / SIDECAR, error=AdapterError).get(TRANSPOSED)
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        remedy = "restore the file that belongs to this adapter"
        raise _bad(str(folder / SIDECAR), f"names in {TRANSPOSED}", repr(names), remedy)
    return frozenset(names)


def _grouped(where: str, groups: int) -> AdapterError:
    return _bad(
        where,
        "a convolution without groups",
        f"one with {groups}: the adapter's update crosses them, the base weight cannot",
        "leave this layer out of target_modules and train again",
    )


def _pattern_value(path: str, patterns: Any, default: float, where: str) -> float:
    """PEFT's rule: the first pattern that matches the path, whole or after a dot, wins."""
    for pattern, value in (patterns or {}).items():
        if _compiled(pattern, where).fullmatch(path):
            return float(value)
    return default


def _check_patterns(config: Mapping[str, Any], paths: Collection[str], where: str) -> None:
    """Patterns that together take no more than some seconds."""
    patterns = [p for name in ("rank_pattern", "alpha_pattern") for p in config.get(name) or {}]
    steps = 0
    for power in (len(_REPEATS.findall(pattern)) + 1 for pattern in patterns):
        steps += sum(len(path) ** min(power, 3) for path in paths)
        if steps > _MAX_STEPS:
            remedy = "write the modules' names in full"
            found = f"{len(patterns)} for {len(paths)} layers, which take too long to match"
            raise _bad(where, "fewer or simpler patterns", found, remedy)


@lru_cache(maxsize=2 * _MAX_PATTERNS)
def _compiled(pattern: str, where: str) -> re.Pattern[str]:
    try:
        if len(pattern) <= 200 and not _SLOW_PATTERN.search(pattern):
            return re.compile(rf"(?:.*\.)?(?:{pattern})")
    except (re.error, OverflowError, RecursionError):
        pass  # no pattern at all
    remedy = "write the module's name in full"
    raise _bad(where, "simple patterns in rank_pattern, alpha_pattern", pattern, remedy)


def _check_config(config: dict[str, Any], where: str) -> None:
    def require(condition: bool, expected: str, found: Any) -> None:
        if not condition:
            remedy = "only plain LoRA adapters can be merged; convert it with PEFT first"
            raise _bad(where, expected, repr(found), remedy)

    require(config.get("peft_type") == "LORA", "peft_type LORA", config.get("peft_type"))
    for name, value in config.items():
        require(name in _NEUTRAL or not value, f"no {name}", value)
    start = config.get("init_lora_weights", True)
    plain = isinstance(start, bool | str | None) and start in _PLAIN_STARTS
    require(plain, "init_lora_weights that leaves the base weights as they are", start)
    r, alpha = config.get("r"), config.get("lora_alpha")
    require(type(r) is int and 1 <= r <= _MAX_SCALE, "a rank r from 1", r)
    require(
        alpha is not None and _is_number(alpha) and abs(alpha) <= _MAX_SCALE,
        "a number in lora_alpha",
        alpha,
    )
    require(config.get("bias", "none") in ("none", "all", "lora_only"), "bias", config.get("bias"))
    for name in ("rank_pattern", "alpha_pattern"):
        patterns = config.get(name) or {}
        good = isinstance(patterns, dict) and all(
            _is_number(v) and 0 < v <= _MAX_SCALE for v in patterns.values()
        )
        require(good and len(patterns) <= _MAX_PATTERNS, f"numbers in {name}", patterns)
    saved = config.get("modules_to_save") or []
    good = isinstance(saved, list) and all(isinstance(name, str) for name in saved)
    require(good, "names in modules_to_save", saved)


def _check_other(name: str, config: Mapping[str, Any], where: str) -> str:
    """The model's name of a tensor that was saved whole; it must be one that PEFT saves."""
    plain = name.replace(".base_layer.", ".")
    saved = any(f".{module}." in f".{plain}" for module in config.get("modules_to_save") or [])
    biased = config.get("bias", "none") != "none" and plain.endswith("bias")
    if not (saved or biased or plain != name):
        remedy = "only plain LoRA adapters can be merged"
        raise _bad(where, "LoRA factors and modules_to_save", name, remedy)
    return plain


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _bad(where: str, expected: str, found: str, remedy: str) -> AdapterError:
    return AdapterError(where, expected=expected, found=found, remedy=remedy)
