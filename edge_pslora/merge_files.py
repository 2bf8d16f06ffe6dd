"""Merge PEFT adapters into a base model, file to file, without torch.

The base is streamed tensor by tensor, so the peak memory is a few times the largest tensor. Every
header, key and shape is checked before anything is written; the output appears whole or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_pslora.config import MERGE_RULES, MergeRule
from edge_pslora.core.merge import merge_step
from edge_pslora.errors import AdapterError, EdgePsloraError, ModelError, UsageError
from edge_pslora.workspace import durable, layout
from edge_pslora.workspace.adapter_folder import (
    Adapter,
    LoraModule,
    check_fits,
    delta_of,
    read_adapter,
)
from edge_pslora.workspace.adapter_names import rename_between
from edge_pslora.workspace.tensor_header import DTYPES, TensorSpec
from edge_pslora.workspace.tensors import TensorFile, open_tensors, write_tensors_streaming

Array = npt.NDArray[Any]
_MERGEABLE = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class MergeReport:
    """What was done. merged, replaced and added name tensors of the output."""

    out: str
    rule: MergeRule
    adapters: tuple[str, ...]
    tensors: int
    merged: tuple[str, ...]
    replaced: tuple[str, ...]
    added: tuple[str, ...]
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Plan:
    """What happens to each tensor of the output, named as in the base.

    modules: adapted tensor -> per adapter, in order, its module there (None: not adapted by it).
    whole: tensor that an adapter saved as a whole -> (adapter, key), the last one wins.
    copies: the same for copies of base tensors that PEFT keeps beside adapted embeddings.
    """

    specs: dict[str, TensorSpec]
    modules: dict[str, list[LoraModule | None]]
    whole: dict[str, tuple[int, str]]
    copies: dict[str, list[tuple[int, str]]]


def merge(
    adapters: Sequence[Path], base: Path, out: Path, rule: MergeRule = "constructive"
) -> MergeReport:
    """W0 + M_T for every adapted weight, M_T folded from the adapters in the order given.

    Args:
        adapters: PEFT folders (adapter_config.json, adapter_model.safetensors), LoRA only.
        base: a safetensors file, or a folder with model.safetensors.
        out: the file to write; replaced when it exists. Dtypes and metadata are the base's.
        rule: see core.merge.merge_step; maths in float32.

    Raises:
        AdapterError: an adapter that is not plain LoRA, does not fit, or would change nothing.
        ModelError: the base cannot be read or merged into.
        UsageError: no adapter, an unknown rule, or `out` is one of the inputs.
    """
    base_file = base / layout.MODEL if base.is_dir() else base
    _check_arguments(adapters, base_file, out, rule)
    loaded = [read_adapter(folder) for folder in adapters]
    with ExitStack() as stack:
        source = stack.enter_context(open_tensors(base_file, error=ModelError))
        files = [
            stack.enter_context(open_tensors(adapter.weights, error=AdapterError))
            for adapter in loaded
        ]
        plan = _plan(loaded, source)
        durable.remove_leftovers(out.absolute().parent, out.name)
        size = sum(spec.bytes for spec in plan.specs.values())
        durable.require_free_space(out.absolute().parent, size + (1 << 20))
        write_tensors_streaming(
            out,
            plan.specs,
            lambda name: _result(name, plan, source, files, rule),
            source.header.metadata,
        )
    known = source.header.specs
    return MergeReport(
        out=str(out),
        rule=rule,
        adapters=tuple(str(folder) for folder in adapters),
        tensors=len(plan.specs),
        merged=tuple(sorted(plan.modules)),
        replaced=tuple(sorted(name for name in plan.whole if name in known)),
        added=tuple(sorted(name for name in plan.whole if name not in known)),
        bytes=out.stat().st_size,
    )


def _check_arguments(adapters: Sequence[Path], base: Path, out: Path, rule: MergeRule) -> None:
    def require(condition: bool, where: str, expected: str, found: str) -> None:
        if not condition:
            raise UsageError(where, expected=expected, found=found, remedy="change the arguments")

    require(len(adapters) > 0, "ADAPTER", "at least one adapter folder", "none")
    require(rule in MERGE_RULES, "--rule", ", ".join(MERGE_RULES), repr(rule))
    require(not out.is_dir(), "--out", "a file name", f"the folder {out}")
    require(out.absolute().parent.is_dir(), "--out", "a file in an existing folder", str(out))
    inputs = [base, *(path for folder in adapters if folder.is_dir() for path in folder.iterdir())]
    clash = out.exists() and any(path.exists() and out.samefile(path) for path in inputs)
    require(not clash, "--out", "a file of its own", f"{out}, which is one of the inputs")


def _plan(adapters: Sequence[Adapter], source: TensorFile) -> _Plan:
    plan = _Plan(dict(source.header.specs), {}, {}, {})
    for index, adapter in enumerate(adapters):
        rename = rename_between(adapter, source.header, str(source.path))
        for module in adapter.modules:
            name = rename(module.path) + ".weight"
            if source.header.specs[name].dtype not in _MERGEABLE:
                raise ModelError(
                    f"{source.path}, {name}",
                    expected=f"one of {', '.join(_MERGEABLE)}",
                    found=source.header.specs[name].dtype,
                    remedy="give the base model before it was quantised",
                )
            check_fits(adapter, module, source.header.specs[name].shape)
            plan.modules.setdefault(name, [None] * len(adapters))[index] = module
        for other, key in adapter.others.items():
            _plan_whole(plan, index, adapter, rename(other), key)
    both = sorted(plan.modules.keys() & plan.whole.keys())
    if both:
        raise AdapterError(
            str(adapters[plan.whole[both[0]][0]].folder),
            expected=f"{both[0]} either adapted or saved whole",
            found="both",
            remedy="merge these adapters one at a time",
        )
    return plan


def _plan_whole(plan: _Plan, index: int, adapter: Adapter, name: str, key: str) -> None:
    spec = adapter.header.specs[key]
    known = plan.specs.get(name)
    if known is not None and known.shape != spec.shape:
        raise AdapterError(
            f"{adapter.weights}, {key}",
            expected=f"shape {known.shape}, as in the base",
            found=f"shape {spec.shape}",
            remedy="use the base model that the adapter was trained on",
        )
    if key.endswith(".base_layer.weight"):
        plan.copies.setdefault(name, []).append((index, key))
    else:
        plan.whole[name] = (index, key)
        plan.specs[name] = known or spec


def _result(
    name: str, plan: _Plan, source: TensorFile, files: Sequence[TensorFile], rule: MergeRule
) -> Array:
    """The output tensor `name`, in its final dtype."""
    if name in plan.whole:
        index, key = plan.whole[name]
        dtype = DTYPES[plan.specs[name].dtype]
        with np.errstate(over="ignore"):
            whole = files[index].read(key, finite=True).astype(dtype)
        return _finite(whole, name, files)
    original = source.read(name, finite=name in plan.modules)
    for index, key in plan.copies.get(name, ()):
        if not np.array_equal(files[index].read(key), original):
            raise AdapterError(
                f"{files[index].path}, {key}",
                expected=f"a copy of the base's {name}",
                found="other values",
                remedy="use the base model that the adapter was trained on",
            )
    if name not in plan.modules:
        return original
    merged = _fold(name, plan.modules[name], original.shape, files, rule)
    exact = np.result_type(np.float32, original.dtype) if original.dtype == "f8" else np.float32
    with np.errstate(over="ignore"):
        result: Array = (original.astype(exact) + merged).astype(original.dtype)
    if np.array_equal(_finite(result, name, files), original):
        found = "an update that is zero" if not merged.any() else "one too small for its dtype"
        raise _unusable(name, files, "a merge that changes the weight", found)
    return result


def _finite(values: Array, name: str, files: Sequence[TensorFile]) -> Array:
    if np.issubdtype(values.dtype, np.integer) or np.isfinite(values).all():
        return values
    raise _unusable(name, files, f"values that {values.dtype} can hold", "an overflow")


def _fold(
    name: str,
    modules: Sequence[LoraModule | None],
    shape: tuple[int, ...],
    files: Sequence[TensorFile],
    rule: MergeRule,
) -> Array:
    """M_T; an adapter without this module counts as a session whose update is zero."""
    merged: Array = np.zeros(shape, dtype=np.float32)
    running: Array = np.zeros(shape, dtype=np.float32) if rule == "cumulative" else merged
    try:
        for session, (module, file) in enumerate(zip(modules, files, strict=True), start=1):
            if module is None and rule != "average":
                continue  # a zero update leaves M as it is under every other rule
            delta = np.zeros(shape, np.float32) if module is None else delta_of(file, module, shape)
            if rule == "cumulative":
                running = delta = running + delta
            merged = merge_step(rule, merged, delta, session)
    except AdapterError:
        raise
    except EdgePsloraError as problem:
        raise _unusable(name, files, problem.expected, problem.found) from problem
    return merged


def _unusable(name: str, files: Sequence[TensorFile], expected: str, found: str) -> AdapterError:
    return AdapterError(
        f"{name} from {', '.join(str(file.path.parent) for file in files)}",
        expected=expected,
        found=found,
        remedy="train the adapter again or leave it out; nothing was written",
    )
