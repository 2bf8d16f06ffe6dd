"""What a merge of adapters does to each tensor, settled before the first byte is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edge_pslora.errors import AdapterError, ModelError
from edge_pslora.workspace.adapter_folder import Adapter, LoraModule, check_fits
from edge_pslora.workspace.adapter_layouts import with_layouts
from edge_pslora.workspace.adapter_names import rename_between
from edge_pslora.workspace.tensor_header import FLOATS, TensorSpec
from edge_pslora.workspace.tensors import TensorFile
from edge_pslora.workspace.tied_weights import check_not_tied

_MERGEABLE = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class Plan:
    """What happens to each tensor of the output, named as in the base.

    specs: every tensor of the output; those in none of the others are copied.
    modules: adapted tensor -> per adapter, in order, its module there (None: not adapted by it).
    whole: tensor that an adapter saved as a whole -> (adapter, key), the last one wins.
    copies: the same for copies of base tensors that PEFT keeps beside adapted embeddings.
    """

    specs: dict[str, TensorSpec]
    modules: dict[str, list[LoraModule | None]]
    whole: dict[str, tuple[int, str]]
    copies: dict[str, list[tuple[int, str]]]


def make_plan(adapters: Sequence[Adapter], source: TensorFile, files: Sequence[TensorFile]) -> Plan:
    """The plan for merging `adapters`, whose weights are open as `files`, into `source`.

    Raises:
        AdapterError: an adapter does not fit, or would change what it was not trained to change.
        ModelError: a weight cannot be merged into.
    """
    plan = Plan(dict(source.header.specs), {}, {}, {})
    for index, adapter in enumerate(adapters):
        rename = rename_between(adapter, source.header, str(source.path))
        shapes = {m.path: source.header.specs[rename(m.tensor)].shape for m in adapter.modules}
        for module in with_layouts(adapter, shapes):
            if module.packed and _is_absent(files[index], module):
                continue
            name = rename(module.tensor)
            spec = source.header.specs[name]
            if spec.dtype not in _MERGEABLE:
                raise ModelError(
                    f"{source.path}, {name}",
                    expected=f"one of {', '.join(_MERGEABLE)}",
                    found=spec.dtype,
                    remedy="give the base model before it was quantised",
                )
            check_fits(adapter, module, spec.shape)
            check_not_tied(name, spec, source.header, source.path.parent, str(adapter.folder))
            plan.modules.setdefault(name, [None] * len(adapters))[index] = module
        for other, key in adapter.others.items():
            _plan_whole(plan, index, adapter, source, rename(other), key)
        _check_changes(plan, index, adapter)
    both = sorted(plan.modules.keys() & plan.whole.keys())
    if both:
        raise AdapterError(
            str(adapters[plan.whole[both[0]][0]].folder),
            expected=f"{both[0]} either adapted or saved whole",
            found="both",
            remedy="merge these adapters one at a time",
        )
    return plan


def _plan_whole(
    plan: Plan, index: int, adapter: Adapter, source: TensorFile, name: str, key: str
) -> None:
    spec = adapter.header.specs[key]
    copied = ".base_layer." in key and not key.endswith("bias")
    known = (source.header.specs if copied else plan.specs).get(name)
    alike = known is None or spec.dtype == known.dtype or {spec.dtype, known.dtype} <= FLOATS
    if (known is None and copied) or (known is not None and known.shape != spec.shape) or not alike:
        raise AdapterError(
            f"{adapter.weights}, {key}",
            expected=f"{known.dtype} of shape {known.shape}, as in the base"
            if known
            else f"a base with {name}",
            found=f"{spec.dtype} of shape {spec.shape}" if known else "none",
            remedy="use the base model that the adapter was trained on",
        )
    if copied:
        plan.copies.setdefault(name, []).append((index, key))
    else:
        check_not_tied(name, spec, source.header, source.path.parent, str(adapter.folder))
        plan.whole[name] = (index, key)
        plan.specs[name] = known or spec


def _is_absent(file: TensorFile, module: LoraModule) -> bool:
    """Whether this half of a packed attention was stored only because PEFT stores both."""
    return not any(file.read(key).any() for key in (module.a_key, module.b_key))


def _check_changes(plan: Plan, index: int, adapter: Adapter) -> None:
    if not any(modules[index] for modules in plan.modules.values()):
        raise AdapterError(
            str(adapter.folder),
            expected="an update that is not zero",
            found="zeros only",
            remedy="train the adapter again or leave it out; nothing was written",
        )
