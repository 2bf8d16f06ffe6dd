"""Merge PEFT adapters into a base model, file to file, without torch.

Adapted weights are streamed tile by tile, the other tensors are copied by the kernel: the memory
that a merge takes does not grow with the model. Every header, key and shape is checked before
anything is written; the output appears whole or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edge_pslora.config import MAX_UPDATE, MERGE_RULES, MergeRule
from edge_pslora.errors import AdapterError, ModelError, UsageError
from edge_pslora.merge_plan import make_plan
from edge_pslora.merge_tiles import write_plan
from edge_pslora.workspace import durable, layout
from edge_pslora.workspace.adapter_folder import read_adapter
from edge_pslora.workspace.tensors import open_tensors

_SHARDS = "model.safetensors.index.json"


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


def merge(
    adapters: Sequence[Path],
    base: Path,
    out: Path,
    rule: MergeRule = "constructive",
    max_update: float = MAX_UPDATE,
) -> MergeReport:
    """W0 + M_T for every adapted weight, M_T folded from the adapters in the order given.

    Args:
        adapters: PEFT folders (adapter_config.json, adapter_model.safetensors), LoRA only.
        base: a safetensors file, or a folder with model.safetensors.
        out: the file to write; replaced when it exists. Dtypes and metadata are the base's.
        rule: see core.merge.merge_step; maths in float32, in float64 for a float64 weight.
        max_update: of what is added to a weight, relative to it (Frobenius norms).

    Raises:
        AdapterError: an adapter that is not plain LoRA, does not fit, would change nothing, or too
            much: another base's, or one with a wrong scale.
        ModelError: the base cannot be read or merged into.
        UsageError: no adapter, an unknown rule, or `out` is one of the inputs.
    """
    base_file = _base_file(base)
    _check_arguments(adapters, base_file, out, rule)
    loaded = [read_adapter(folder) for folder in adapters]
    with ExitStack() as stack:
        source = stack.enter_context(open_tensors(base_file, error=ModelError))
        files = [
            stack.enter_context(open_tensors(adapter.weights, error=AdapterError))
            for adapter in loaded
        ]
        plan = make_plan(loaded, source, files)
        durable.remove_leftovers(out.absolute().parent, out.name)
        size = sum(spec.bytes for spec in plan.specs.values())
        durable.require_free_space(out.absolute().parent, size + (1 << 20))
        write_plan(out, plan, source, files, rule, max_update)
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


def _base_file(base: Path) -> Path:
    if not base.is_dir():
        return base
    if not (base / layout.MODEL).exists() and (base / _SHARDS).exists():
        raise ModelError(
            str(base),
            expected=f"all weights in one {layout.MODEL}",
            found=f"a model in several files, {_SHARDS}",
            remedy="save it in one: model.save_pretrained(folder, max_shard_size='1TB')",
        )
    return base / layout.MODEL


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
